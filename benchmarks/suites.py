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

SUITES = ("bench_overhead.py", "bench_throughput.py")


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


class _Progress:
    """Tells a progress bar how many cases there are, and when one is done."""

    def __init__(self, on_case: Callable[[int], None]) -> None:
        self._on_case = on_case

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._total = len(session.items)

    def pytest_runtest_logfinish(self) -> None:
        self._on_case(self._total)


def run(quick: bool, on_case: Callable[[int], None]) -> list[Timing]:
    """Runs all suites in this process; ``on_case(number of all cases)`` is called after each.

    Raises:
        RuntimeError: a case failed; the message is pytest's report.
        KeyboardInterrupt: the user stopped it.
    """
    folder = Path(__file__).parent
    report = io.StringIO()
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
            plugins=[_Progress(on_case)],
        )
        if status == pytest.ExitCode.INTERRUPTED:
            raise KeyboardInterrupt
        if status != pytest.ExitCode.OK:
            raise RuntimeError(f"The suites did not pass.\n{report.getvalue()}")
        records = json.loads(figures.read_text())["benchmarks"]
    return [
        Timing(
            Case(**record["extra_info"]),
            record["stats"]["median"],
            record["stats"]["min"],
            record["stats"]["rounds"],
        )
        for record in records
    ]
