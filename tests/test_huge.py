"""More than 2^31 elements: indices and byte counts that 32 bits cannot hold.

In bfloat16 on the CPU. Memory that is only read is never touched before, and so takes no space: the
operating system gives zeros, of which f and its gradients are zeros, but at some marked places.
"""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest
import torch
from torch import Tensor

import crrelu_ext

from .oracle import Formula, Terms, exact_numbers, steps_from_rounded
from .tolerances import NEIGHBOUR, assert_sums

NUMEL = 2**31 + 3 * 2**14 + 64
SHAPES = [((NUMEL,), 0), ((2, NUMEL // 2), 0), ((NUMEL // 64, 64), 1)]
MARKS = torch.tensor([0, 1, 2**30 - 1, 2**30, NUMEL // 2 - 1, NUMEL // 2])
MARKS = torch.cat(
    [MARKS, 2**31 + torch.arange(-700, 700, 7), NUMEL - 1 - torch.arange(70)]
).unique()
EPSILON = -0.5


def marked(values: Tensor) -> Tensor:
    pages = mmap.mmap(-1, 2 * NUMEL, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_HUGEPAGE)
    tensor = torch.frombuffer(pages, dtype=torch.bfloat16)
    tensor[MARKS] = values
    return tensor


def assert_marked(tensor: Tensor, terms: Terms) -> None:
    """Right at the marks, which are taken away, and zero, of either sign, elsewhere."""
    flat = tensor.reshape(-1)
    assert steps_from_rounded(flat[MARKS], terms).max() <= NEIGHBOUR
    flat[MARKS] = 0
    without_signs = flat.view(torch.int64).bitwise_and_(0x7FFF_7FFF_7FFF_7FFF)  # four at a time
    assert without_signs.count_nonzero() == 0


def test_more_than_2_to_the_31_elements() -> None:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < 3 * NUMEL:  # one output of 2 bytes each, and some room
        pytest.skip(f"needs {3 * NUMEL / 2**30:.0f} GiB of memory; {free / 2**30:.1f} are free")
    values = torch.linspace(0.5, 3, len(MARKS)).bfloat16()
    input, grad, formula = marked(values), exact_numbers(values), Formula(exact_numbers(values))

    # Backward as an operator, which asks for no output; with the input as grad_output.
    backward = torch.ops.crrelu_ext.crrelu_backward
    buffer = torch.empty(0)
    for shape, channel_dim in SHAPES:
        x, channels = input.reshape(shape), 1 if len(shape) == 1 else shape[channel_dim]
        epsilon = torch.full((channels,), EPSILON)
        want_input = channels == 64  # once, for the time that fresh memory takes
        grad_input, sums = backward(x, x, epsilon, channel_dim, [want_input, True])
        channel = {1: MARKS * 0, 2: MARKS // (NUMEL // 2), 64: MARKS % 64}[channels]
        terms = np.zeros((len(MARKS), channels))
        terms[np.arange(len(MARKS)), channel] = grad * formula.epsilon_derivative().second
        assert_sums(sums, terms, torch.bfloat16)
        if want_input:
            slope = formula.input_derivative(EPSILON)
            assert_marked(grad_input, Terms(grad * slope.first, grad * slope.second))
            buffer = grad_input.reshape(-1)

    for shape, channel_dim in SHAPES:
        epsilon = torch.full((1 if len(shape) == 1 else shape[channel_dim],), EPSILON)
        out = buffer.reshape(shape)
        crrelu_ext.crrelu(input.reshape(shape), epsilon, channel_dim=channel_dim, out=out)
        assert_marked(buffer, formula.value(EPSILON))
