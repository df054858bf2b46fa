"""Inputs of any shape, strides and offset: what comes out, how it lies, and what is copied."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import crrelu_ext
from crrelu_ext.reference import DTYPES

from .evaluation import evaluate
from .oracle import Formula, Terms, error_in_ulps, exact_numbers
from .tolerances import TOLERANCES, assert_sums


def eager(x: Tensor, epsilon: Tensor) -> Tensor:
    """The formula as a user would write it; its layout is what matters here."""
    return torch.relu(x) + epsilon * x * torch.exp(-x * x / 2)


def effective_strides(tensor: Tensor) -> dict[int, int]:
    """By dimension; those that no element's place depends on are left out."""
    several = [dim for dim in range(tensor.dim()) if tensor.shape[dim] > 1 and tensor.numel() > 0]
    return {dim: tensor.stride(dim) for dim in several}


def broadcast(epsilon: Tensor, dim: int, channel_dim: int) -> Tensor:
    """In the shape that lies along an input's channel_dim."""
    shape = [1] * dim
    if epsilon.numel() != 1:
        shape[channel_dim] = -1
    return epsilon.reshape(shape)


def assert_right(input: Tensor, epsilon: Tensor, grad_output: Tensor, channel_dim: int) -> None:
    """Output and gradients are right, and the output lies where the eager formula's would."""
    before = input.clone()
    results = evaluate(input, epsilon, grad_output, channel_dim=channel_dim)
    parameter = broadcast(epsilon, input.dim(), channel_dim)
    for tensor in results[:2]:
        assert (tensor.shape, tensor.dtype) == (input.shape, input.dtype)
    assert (results.grad_epsilon.shape, results.grad_epsilon.dtype) == (
        epsilon.shape,
        epsilon.dtype,
    )
    expected = eager(input, parameter.to(input.dtype))
    assert effective_strides(results.output) == effective_strides(expected)
    assert torch.equal(input, before)

    tolerance = TOLERANCES[input.dtype]
    formula, exact_epsilon = Formula(exact_numbers(input)), exact_numbers(parameter)
    grad = exact_numbers(grad_output)
    if input.numel() == 0:
        assert torch.equal(results.grad_epsilon, torch.zeros_like(epsilon))
        return
    assert error_in_ulps(results.output, formula.value(exact_epsilon)).max() <= tolerance.value
    slope = formula.input_derivative(exact_epsilon)
    terms = Terms(grad * slope.first, grad * slope.second)  # whose product is rounded once more
    assert error_in_ulps(results.grad_input, terms).max() <= tolerance.derivative + 1
    shares = grad * formula.epsilon_derivative().second
    if epsilon.numel() != 1:
        shares = np.moveaxis(shares, channel_dim, -1)
    assert_sums(results.grad_epsilon, shares.reshape(-1, epsilon.numel()), input.dtype)


class Case(NamedTuple):
    input: Tensor
    epsilon: Tensor
    grad_output: Tensor
    channel_dim: int


@st.composite
def strided(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """A view with its dimensions in any order, gaps between elements, and repeated dimensions."""
    strides = [0] * len(shape)
    step = draw(st.sampled_from([1, 1, 2, 3]))
    for dim in draw(st.permutations(range(len(shape)))):
        strides[dim] = draw(st.sampled_from([step, step, step, 0]))
        if shape[dim] == 1:
            strides[dim] = draw(st.integers(0, 50))
        elif strides[dim]:
            step *= shape[dim] * draw(st.sampled_from([1, 1, 1, 2]))
    offset = draw(st.integers(0, 17))
    extent = 1 + sum(
        (max(size, 1) - 1) * stride for size, stride in zip(shape, strides, strict=True)
    )
    numbers = 2 * torch.randn(offset + extent, generator=torch.Generator().manual_seed(seed))
    return numbers.to(dtype).as_strided(shape, strides, offset)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dtype = draw(st.sampled_from(DTYPES))
    sizes = st.sampled_from([0, 1, 1, 2, 3, 4, 5, 7, 9])
    shape = tuple(draw(st.lists(sizes, max_size=5 if dtype != torch.float64 else 3)))
    input = draw(strided(shape, dtype, seed=0))
    grad_output = draw(strided(shape, dtype, seed=1))
    epsilon_dtype = draw(st.sampled_from([torch.float32, dtype]))
    channel_dim, channels, per_channel = 1, 1, draw(st.booleans())
    if shape and per_channel:
        channel_dim = draw(st.integers(-len(shape), len(shape) - 1))
        channels = shape[channel_dim]
    epsilon = torch.linspace(-1.7, 1.0, channels).to(epsilon_dtype)
    return Case(input, epsilon, grad_output, channel_dim)


@settings(max_examples=400)
@given(case=cases())
def test_any_strides(case: Case) -> None:
    assert_right(*case)


@pytest.mark.parametrize(
    ("shape", "channel_dim"),
    [
        *[((3, 5, inner), 1) for inner in (1, 2, 17, 127, 128, 200)],
        *[((rows, channels), 1) for rows in (1, 3, 70) for channels in (2, 17, 40)],
        *[((channels, inner), 0) for channels in (2, 17) for inner in (3, 15, 16, 150)],
        *[((rows, 9, 16), 1) for rows in (2, 3)],
        ((2, 4, 3, 50), 1),
        ((2, 4, 3, 50), 2),
        ((2, 3, 4, 50), -1),
    ],
)
def test_each_channel_has_its_epsilon(
    device: str, dtype: torch.dtype, shape: tuple[int, ...], channel_dim: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    input, grad_output = torch.randn(2, *shape, generator=generator).to(device, dtype)
    epsilon = torch.linspace(-1.7, 1.0, shape[channel_dim], device=device, dtype=dtype)
    assert_right(input, epsilon, grad_output, channel_dim)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "channel_dim"),
    [((2, 3, 40_000), 1), ((3, 40_000), 0), ((40_000, 3), 1), ((3, 40_000), 1), ((90, 700, 3), 1)],
)
def test_each_channel_has_its_epsilon_in_what_threads_share(
    device: str, dtype: torch.dtype, shape: tuple[int, ...], channel_dim: int
) -> None:
    test_each_channel_has_its_epsilon(device, dtype, shape, channel_dim)


ROWS: dict[str, Callable[[Callable[..., Tensor]], Tensor]] = {
    "half": lambda randn: randn(37, 400).chunk(2, -1)[1],
    "columns": lambda randn: randn(9, 300)[:, 5:204],
    "short": lambda randn: randn(9, 300)[:, :100],
    "long": lambda randn: randn(3, 40_000)[:, 1:39_000],
    "every other row": lambda randn: randn(8, 200)[::2],
    "three dimensions": lambda randn: randn(4, 9, 300).chunk(2, -1)[0],
    "rows left out": lambda randn: randn(4, 9, 150)[:, :7],
    "channels": lambda randn: randn(3, 8, 5, 16).chunk(2, 1)[1],
    "repeated": lambda randn: randn(150).expand(6, 150),
    "repeated twice": lambda randn: randn(4, 50).expand(3, 2, 4, 50),
    "overlapping": lambda randn: randn(700).as_strided((5, 150), (130, 1)),
    "windows": lambda randn: randn(200).unfold(0, 150, 1)[:5],
    "windows of rows": lambda randn: randn(984).as_strided((3, 4, 128), (128, 200, 1)),
    "one": lambda randn: randn(1, 300)[:, 7:],
}


@pytest.mark.parametrize("per_channel", [False, True], ids=["one", "per_channel"])
@pytest.mark.parametrize("name", ROWS)
def test_gaps_between_rows(device: str, dtype: torch.dtype, name: str, per_channel: bool) -> None:
    randn = partial(torch.randn, device=device, dtype=dtype)
    input, grad_output = ROWS[name](randn), ROWS[name](randn)
    channels = input.shape[-1] if per_channel else 1
    epsilon = torch.linspace(-1.7, 1, channels, device=device)
    for x, grad in (
        (input, grad_output),
        (input, grad_output.clone()),
        (input.clone(), grad_output),
    ):
        assert_right(x, epsilon, grad, -1)


PERMUTED: dict[str, Callable[[], Tensor]] = {
    "channels_last": lambda: torch.randn(2, 12, 9, 5).to(memory_format=torch.channels_last),
    "channels_last_3d": lambda: torch.randn(2, 6, 3, 5, 4).to(memory_format=torch.channels_last_3d),
    "transposed": lambda: torch.randn(150, 8).t(),
    "permuted": lambda: torch.randn(3, 30, 4, 5).permute(2, 0, 3, 1),
    "one_element_dims": lambda: torch.randn(1200).as_strided((1, 30, 1, 40), (7, 40, 3, 1)),
}


@pytest.mark.parametrize("channels_at", [None, 0, 1, 2, -1])
@pytest.mark.parametrize("layout", PERMUTED)
def test_permuted_layout_is_kept(
    device: str, dtype: torch.dtype, layout: str, channels_at: int | None
) -> None:
    input = PERMUTED[layout]().to(device, dtype)
    if channels_at is not None and not -input.dim() <= channels_at < input.dim():
        channels_at = 0
    channel_dim = channels_at or 0
    channels = 1 if channels_at is None else input.shape[channel_dim]
    epsilon = torch.linspace(-1, 1, channels, device=device, dtype=dtype)
    grad_output = torch.randn(input.shape, device=device).to(dtype)  # contiguous, and as the input
    assert_right(input, epsilon, grad_output, channel_dim)
    results = evaluate(input, epsilon, torch.ones_like(input), channel_dim=channel_dim)
    for tensor in (results.output, results.grad_input):
        assert tensor.stride() == input.stride()


def allocated_bytes(function: Callable[[], object]) -> int:
    """What a call allocates on the CPU, whether it frees it again or not."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = function()
    del kept
    events = profiler.profiler.kineto_results.events()
    return sum(max(0, event.nbytes()) for event in events if event.name() == "[memory]")


def test_no_copy_of_a_permuted_input() -> None:
    input = torch.randn(8, 64, 32, 32).to(memory_format=torch.channels_last).requires_grad_()
    small = 16384  # epsilons written out and partial sums
    for channels, channel_dim in ((1, 1), (64, 1), (32, 2), (8, 0)):
        epsilon = torch.zeros(channels, requires_grad=True)
        output = crrelu_ext.crrelu(input, epsilon, channel_dim=channel_dim)
        grad_output = torch.ones_like(output)

        def forward(epsilon: Tensor = epsilon, channel_dim: int = channel_dim) -> Tensor:
            return crrelu_ext.crrelu(input, epsilon, channel_dim=channel_dim)

        def backward(
            output: Tensor = output, epsilon: Tensor = epsilon, grad_output: Tensor = grad_output
        ) -> object:
            return torch.autograd.grad(output, (input, epsilon), grad_output)

        for function in (forward, backward):
            assert input.nbytes <= allocated_bytes(function) <= input.nbytes + small
    gaps = input.detach()[:, :, :, :31]  # of which there is a copy, which becomes the output
    allocated = allocated_bytes(lambda: crrelu_ext.crrelu(gaps, epsilon[:1]))
    assert gaps.nbytes <= allocated <= gaps.nbytes + small


@pytest.mark.parametrize(
    "parts",
    [
        lambda: torch.randn(2000, 600).chunk(2, -1),
        lambda: (torch.randn(40, 50, 192)[:, 1:], torch.randn(40, 49, 192)),
        lambda: torch.randn(40, 32, 14, 14).chunk(2, 1),
    ],
    ids=["columns", "tokens", "channels"],
)
def test_no_copy_of_a_part(parts: Callable[[], tuple[Tensor, Tensor]]) -> None:
    gate, up = parts()
    epsilon, most = torch.ones(1), gate.nbytes + 16384
    for forward in (
        lambda: crrelu_ext.crrelu(gate, epsilon),
        lambda: crrelu_ext.crrelu_glu(gate, up, epsilon),
    ):
        assert gate.nbytes <= allocated_bytes(forward) <= most
    backward, both = torch.ops.crrelu_ext.crrelu_backward, [True, True]
    assert gate.nbytes <= allocated_bytes(lambda: backward(up, gate, epsilon, 1, both)) <= most


def test_zero_dimensional(device: str, dtype: torch.dtype) -> None:
    for epsilon in (torch.tensor([0.5]), torch.tensor([0.5], dtype=dtype)):
        input, grad_output = torch.tensor([-1.5, 3.0], dtype=dtype, device=device)
        for channel_dim in (-1, 0, 1):  # of no importance to one epsilon
            assert_right(input, epsilon.to(device), grad_output, channel_dim)


@pytest.mark.parametrize(
    ("shape", "channels", "channel_dim"),
    [
        ((0,), 1, 1),
        ((3, 0), 1, 1),
        ((3, 0), 3, 0),
        ((3, 0), 0, 1),
        ((0, 5, 2), 5, 1),
        ((0, 0), 0, 0),
    ],
)
def test_empty(
    device: str, dtype: torch.dtype, shape: tuple[int, ...], channels: int, channel_dim: int
) -> None:
    input = torch.empty(shape, dtype=dtype, device=device)
    epsilon = torch.ones(channels, device=device)
    assert_right(input, epsilon, input.clone(), channel_dim)
    out = torch.empty_like(input)
    assert crrelu_ext.crrelu(input, epsilon, channel_dim=channel_dim, out=out) is out
    assert crrelu_ext.crrelu_(input, epsilon, channel_dim=channel_dim) is input


def test_epsilon_with_gaps(device: str, dtype: torch.dtype) -> None:
    """As a column of a matrix, reversed by flip, and expanded from one value."""
    matrix = torch.linspace(-1, 1, 21, device=device).reshape(7, 3)
    input = torch.randn(5, 7, device=device).to(dtype)
    for epsilon in (matrix[:, 1], matrix[:, 0].flip(0), matrix[0, :1].expand(7)):
        assert_right(input, epsilon.to(dtype), input.flip(1), 1)


def test_views_of_one_tensor(device: str, dtype: torch.dtype) -> None:
    """grad_output and input may be the same memory, in different orders too."""
    square = torch.randn(33, 33, device=device).to(dtype)
    epsilon = torch.tensor([0.5], device=device)
    assert_right(square, epsilon, square, 1)
    assert_right(square, epsilon, square.t(), 1)
    assert_right(square[1:], epsilon, square[:-1], 1)
