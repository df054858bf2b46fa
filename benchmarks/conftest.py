"""How a case is timed."""

from collections.abc import Callable
from dataclasses import asdict
from time import perf_counter
from timeit import timeit

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from .cases import Case

LARGE = 2**20


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="fewer sizes, fewer rounds")


def settle(call: Callable[[], object], seconds: float) -> None:
    """Calls until that takes as long as it will, but for no more than so many seconds.

    A virtual machine gets memory from its host when it first touches it, and gives back what has
    been free for some seconds: of calls that take 5 ms the first ten have been seen to take 74, or
    the second ten.
    """
    times: list[float] = []
    end = perf_counter() + seconds
    while perf_counter() < end:
        times.append(timeit(call, number=1))
        if len(times) >= 24 and max(times[-8:]) < 1.5 * min(times):
            break


@pytest.fixture
def measure(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Callable[[Case], None]:
    """Times one case: rounds of about a millisecond, as many as fit its share of the time."""
    quick = request.config.getoption("quick")
    seconds, warm_up = (0.03, 1.5) if quick else (0.12, 5)

    def run(case: Case) -> None:
        call = case.bind()
        call()  # compiles, starts the threads
        if case.numel >= LARGE:
            settle(call, warm_up)
        once = timeit(call, number=3) / 3
        iterations = max(1, round(1e-3 / once))
        rounds = max(3, round(seconds / (once * iterations)))
        benchmark.group = str(case).rpartition(",")[0]  # rivals side by side
        benchmark.extra_info |= asdict(case)
        benchmark.pedantic(call, iterations=iterations, rounds=rounds)

    return run
