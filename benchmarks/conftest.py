"""How a case is timed."""

from collections.abc import Callable
from dataclasses import asdict
from time import perf_counter
from timeit import repeat, timeit

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from .cases import Case
from .suites import MIN_ROUNDS

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


def calibrate(call: Callable[[], object], seconds: float) -> tuple[int, int]:
    """The calls that make a round of about a millisecond, and the rounds that fit the time.

    By the fastest of some calls: one that was disturbed would leave few rounds of one call each,
    and nothing among them to tell that by.
    """
    once = min(repeat(call, number=1, repeat=5))
    iterations = max(1, round(1e-3 / once))
    return iterations, max(MIN_ROUNDS, round(seconds / (once * iterations)))


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
        iterations, rounds = calibrate(call, seconds)
        benchmark.group = str(case).rpartition(",")[0]  # rivals side by side
        benchmark.extra_info |= asdict(case)
        benchmark.pedantic(call, iterations=iterations, rounds=rounds)

    return run
