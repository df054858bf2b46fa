"""The kernels run on PyTorch's threads: on all that it is told to use, and on no others."""

import subprocess
import sys

import pytest
import torch

import crrelu_ext

PROGRAM = """
import os
import torch
from crrelu_ext import crrelu

torch.set_num_threads(3)
input, epsilon = torch.empty(2**20), torch.empty(1)  # filled, they would start the threads
for line in ("pass", {calls}):
    exec(line)
    print(len(os.listdir("/proc/self/task")))
"""
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
KERNELS, PYTORCH = "crrelu(input, epsilon)", "torch.sigmoid(input)"


@ON_LINUX
@pytest.mark.skipif(not crrelu_ext.build_info()["native"], reason="needs the kernels")
@pytest.mark.skipif(
    "backend: OpenMP" not in torch.__config__.parallel_info(), reason="PyTorch has none"
)
@pytest.mark.parametrize("calls", [(KERNELS, PYTORCH), (PYTORCH, KERNELS)], ids=["first", "second"])
def test_threads_are_shared(calls: tuple[str, str]) -> None:
    program = PROGRAM.format(calls=", ".join(map(repr, calls)))
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    alone, one, both = map(int, process.stdout.split())
    assert one == alone + 2
    assert both == one


VARYING = """
import os
import torch
from crrelu_ext import crrelu

torch.set_num_threads(4)
small, large, epsilon = torch.empty(2 * 16384), torch.empty(2**20), torch.empty(1)
seen = set()
for _ in range(20):
    torch.sigmoid(large)
    crrelu(small, epsilon)
    seen |= set(os.listdir("/proc/self/task"))
print(len(seen) - len(os.listdir("/proc/self/task")))
"""


@ON_LINUX
def test_threads_stay() -> None:
    """Work for fewer threads than there are ends none of them."""
    command = [sys.executable, "-c", VARYING]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(process.stdout) == 0


BACKWARD = """
import threading
import torch
import crrelu_ext

def backward(output):
    try:
        output.sum().backward()
    except RuntimeError as error:
        errors.append("a second time" in str(error))

errors = []
for _ in range(200):
    x = torch.randn(100, requires_grad=True)
    outputs = [crrelu_ext.crrelu(x * 2, torch.ones(1, requires_grad=True))] * 3
    threads = [threading.Thread(target=backward, args=(output,)) for output in outputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print(len(errors), all(errors))
"""


def test_backward_passes_of_several_threads_through_one_graph() -> None:
    """One of them gets through, the others an error, as of torch's own operators."""
    command = [sys.executable, "-c", BACKWARD]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["400", "True"]


@pytest.mark.usefixtures("threads")
def test_any_number_of_threads_gives_the_same() -> None:
    """Shares of unequal length, and more threads than pieces of work."""
    input = torch.randn(5 * 16384 + 7)
    epsilon = torch.tensor([-0.5])
    torch.set_num_threads(1)
    expected = crrelu_ext.crrelu(input, epsilon)
    for count in (2, 3, 4, 16):
        torch.set_num_threads(count)
        assert torch.equal(crrelu_ext.crrelu(input, epsilon), expected)
