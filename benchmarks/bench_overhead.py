"""What a call costs besides the arithmetic: 16 float32 elements."""

from collections.abc import Callable

import pytest
import torch

from .activations import ACTIVATIONS
from .cases import FORWARD, FORWARD_BACKWARD, MODULE, MODULE_GRAPH, Case

NUMEL = 16
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
CASES = [
    Case(operation, device, "float32", NUMEL, activation.name)
    for device in DEVICES
    for operation in (FORWARD, FORWARD_BACKWARD, MODULE, MODULE_GRAPH)
    for activation in ACTIVATIONS.values()
    if activation.module or operation not in (MODULE, MODULE_GRAPH)
]


@pytest.mark.parametrize("case", CASES, ids=str)
def bench_overhead(measure: Callable[[Case], None], case: Case) -> None:
    measure(case)
