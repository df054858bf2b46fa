"""Runs the pytest-benchmark suites and hands back their figures."""

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from .cases import Case
from .failure import Failure

SUITES = ("bench_overhead.py", "bench_throughput.py")
MIN_ROUNDS = 7


@dataclass(frozen=True)
class Timing:
    """A case and the seconds per call: the median over the rounds, and the fastest round."""

    case: Case
    median: float
    fastest: float
    rounds: int

    @property
    def bandwidth(self) -> float:
        """Bytes per second, counting what the operation must move."""
        return self.case.bytes_moved / self.median

    @property
    def doubtful(self) -> bool:
        """Whether there were few rounds, or their median is far from the fastest."""
        return self.rounds <= MIN_ROUNDS or self.median > 1.5 * self.fastest


class _Watch:
    """Tells a progress bar how many cases there are, and when one is done; keeps what failed."""

    def __init__(self, on_case: Callable[[int], None]) -> None:
        self._on_case = on_case
        self.failures: list[Failure] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._total = len(session.items)

    def pytest_runtest_makereport(self, item: pytest.Function, call: pytest.CallInfo[None]) -> None:
        if call.excinfo is not None and isinstance(call.excinfo.value, Exception):
            case = item.callspec.params["case"]
            self.failures.append(Failure.of(case, call.excinfo.value))

    def pytest_runtest_logfinish(self) -> None:
        self._on_case(self._total)


def run(quick: bool, on_case: Callable[[int], None]) -> tuple[list[Timing], list[Failure]]:
    """Runs all suites in this process; ``on_case(number of all cases)`` is called after each.

    Raises:
        RuntimeError: nothing could be measured; the message says why.
        KeyboardInterrupt: the user stopped it.
    """
    folder = Path(__file__).parent
    report, watch = io.StringIO(), _Watch(on_case)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(report):
        figures = Path(scratch, "figures.json")
        status = pytest.main(
            [
                *(str(folder / suite) for suite in SUITES),
                f"--benchmark-json={figures}",
                # Without capturing, so that a progress bar can write; without a cache folder.
                *("-q", "--benchmark-quiet", "--capture=no", "-p", "no:cacheprovider"),
                *(["--quick"] if quick else []),
            ],
            plugins=[watch],
        )
        if status == pytest.ExitCode.INTERRUPTED:
            raise KeyboardInterrupt
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise RuntimeError(f"The suites did not run.\n{report.getvalue()}")
        if not figures.exists():
            raise RuntimeError(f"Every case failed. {watch.failures[0].error}")
        records = json.loads(figures.read_text())["benchmarks"]
    timings = [
        Timing(
            Case(**record["extra_info"]),
            record["stats"]["median"],
            record["stats"]["min"],
            record["stats"]["rounds"],
        )
        for record in records
    ]
    return timings, watch.failures
