"""Throughput over size: every activation, forward and forward+backward, beside a plain copy."""

from collections.abc import Callable, Iterator

import pytest
import torch

from .activations import ACTIVATIONS, COMPILED, COPY, CRRELU
from .cases import FORWARD, FORWARD_BACKWARD, FORWARD_OUT, Case

SIZES = tuple(4**k for k in range(5, 14))  # 1 Ki to 64 Mi elements
QUICK_SIZES = (2**10, 2**16, 2**20, 2**24)
# Each size is compiled by itself, a few seconds for forward and backward: so not every size.
COMPILED_SIZES = (2**10, 2**16, 2**20, 2**24, 2**26)
QUICK_COMPILED_SIZES = (2**20,)


def throughput_cases(quick: bool) -> Iterator[Case]:
    """All cases, rivals side by side: what changes on the machine meets them alike."""
    compiled_sizes = QUICK_COMPILED_SIZES if quick else COMPILED_SIZES
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for numel in QUICK_SIZES if quick else SIZES:
            rivals = [*ACTIVATIONS, COMPILED] if numel in compiled_sizes else [*ACTIVATIONS]
            for dtype in ("float32", "bfloat16"):
                for operation, names in (
                    (FORWARD_OUT, (COPY, CRRELU.name)),
                    (FORWARD, rivals),
                    (FORWARD_BACKWARD, rivals),
                ):
                    for name in names:
                        yield Case(operation, device, dtype, numel, name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    quick = metafunc.config.getoption("quick")
    metafunc.parametrize("case", list(throughput_cases(quick)), ids=str)


def bench_throughput(measure: Callable[[Case], None], case: Case) -> None:
    measure(case)
