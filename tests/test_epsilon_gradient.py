"""The gradient of epsilon: a sum over the elements that share it, exact enough and reproducible."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import crrelu_ext

from .evaluation import evaluate
from .oracle import Array, Formula, to_numpy
from .tolerances import TOLERANCES, assert_sums

THREADS = (1, 2, 3, 5)


def terms_by_epsilon(input: Tensor, grad_output: Tensor, channel_dim: int | None) -> Array:
    """grad_output · ∂f/∂ε as (number of elements that share an epsilon, number of epsilons)."""
    terms = to_numpy(grad_output) * Formula(to_numpy(input)).epsilon_derivative().second
    if channel_dim is None:
        return terms.reshape(-1, 1)
    return np.moveaxis(terms, channel_dim, -1).reshape(-1, input.shape[channel_dim])


def arguments(
    shape: tuple[int, ...], channel_dim: int | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """input, epsilon and grad_output."""
    generator = torch.Generator().manual_seed(0)
    input, grad_output = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)
    channels = 1 if channel_dim is None else shape[channel_dim]
    return input, torch.linspace(-1.7, 0.5, channels, dtype=dtype), grad_output


SHAPES = [  # a single epsilon, or one per channel
    *[((n,), None) for n in (1, 2, 7, 127, 1023, 1024, 1025, 16384, 16385, 50_000, 300_001)],
    ((3, 5, 7, 11), None),
    # (outer, C, inner)
    *[((2, channels, inner), 1) for channels in (1, 2, 3, 5, 17, 64) for inner in (1, 2, 7, 49)],
    *[((3, channels, inner), 1) for channels in (2, 5, 17) for inner in (127, 128, 129, 1000)],
    *[((11, channels, 3), 1) for channels in (64, 700, 5000)],
    *[((2, channels, 129), 1) for channels in (64, 700)],
    ((1, 2, 70_000), 1),
    ((1, 1, 50_000), 1),
    # (rows, C)
    *[((rows, channels), -1) for rows in (1, 2, 3, 5, 1000) for channels in (2, 3, 17, 64, 700)],
    *[((rows, 5000), -1) for rows in (1, 2, 77)],
    *[((rows, 40_000), -1) for rows in (1, 3)],
    *[((40_000, channels), -1) for channels in (1, 2, 5, 64)],
    # (C, inner)
    *[((channels, inner), 0) for channels in (1, 2, 5, 64, 5000) for inner in (1, 7, 128, 129)],
    ((5, 3, 4, 6), 2),
    ((5, 3, 4, 6), -2),
]


@pytest.mark.parametrize(("shape", "channel_dim"), SHAPES)
def test_shapes(
    threads: None, device: str, dtype: torch.dtype, shape: tuple[int, ...], channel_dim: int | None
) -> None:
    """Right, and of the same bits for any number of threads."""
    input, epsilon, grad_output = arguments(shape, channel_dim, dtype)
    if dtype != torch.float64:
        epsilon = epsilon.float()
    on_device = [tensor.to(device) for tensor in (input, epsilon, grad_output)]
    sums = []
    for count in THREADS:
        torch.set_num_threads(count)
        sums.append(evaluate(*on_device, channel_dim=channel_dim or 0).grad_epsilon)
    assert all(torch.equal(sum, sums[0]) for sum in sums)
    assert (sums[0].shape, sums[0].dtype) == (epsilon.shape, epsilon.dtype)
    assert_sums(sums[0], terms_by_epsilon(input, grad_output, channel_dim), dtype)


@pytest.mark.parametrize(
    ("shape", "channel_dim"), [((5000,), None), ((7, 3, 500), 1), ((900, 5), 1)]
)
@pytest.mark.parametrize("wants_input", [True, False])
def test_epsilon_of_the_inputs_dtype(
    device: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    channel_dim: int | None,
    wants_input: bool,
) -> None:
    input, epsilon, grad_output = (t.to(device) for t in arguments(shape, channel_dim, dtype))
    input.requires_grad_(wants_input)
    output = crrelu_ext.crrelu(input, epsilon.requires_grad_(), channel_dim=channel_dim or 0)
    output.backward(grad_output)
    assert epsilon.grad is not None
    assert (epsilon.grad.shape, epsilon.grad.dtype) == (epsilon.shape, dtype)
    assert_sums(epsilon.grad, terms_by_epsilon(input, grad_output, channel_dim), dtype)


@pytest.mark.parametrize(("shape", "channel_dim"), [((65536,), None), ((512, 128), 1)])
def test_equal_terms(device: str, shape: tuple[int, ...], channel_dim: int | None) -> None:
    """Each addition of the same number rounds the same way: no error is made up for by another.

    The relative error of a long sum of these is that of each of its parts.
    """
    channels = 1 if channel_dim is None else shape[channel_dim]
    epsilon = torch.full((channels,), 0.01, device=device)
    for x in torch.linspace(0.05, 3.95, 40):
        input = torch.full(shape, x.item())
        grad_epsilon = evaluate(input.to(device), epsilon).grad_epsilon
        terms = terms_by_epsilon(input, torch.ones(shape), channel_dim)
        assert_sums(grad_epsilon, terms, torch.float32)


@pytest.mark.parametrize("epsilon", [0.01, 0.99, -1.99])
@pytest.mark.parametrize("factor", ["max", "smallest_normal"])
def test_largest_and_smallest_terms(
    device: str, dtype: torch.dtype, factor: str, epsilon: float
) -> None:
    """Whatever epsilon is multiplied into on the way, no term goes out of range by it."""
    input = torch.tensor([1, 1, -0.5], dtype=dtype)
    grad_output = getattr(torch.finfo(dtype), factor) * torch.tensor([1, -0.25, 0.5]).to(dtype)
    parameter = torch.tensor([epsilon], dtype=torch.promote_types(dtype, torch.float32))
    grad_epsilon = evaluate(
        input.to(device), parameter.to(device), grad_output.to(device)
    ).grad_epsilon
    assert_sums(grad_epsilon, terms_by_epsilon(input, grad_output, None), dtype)


def test_64_mi_elements(threads: None, device: str) -> None:
    """All terms positive, so that no rounding error is made up for by another."""
    numel, period = 64 << 20, 1_048_573  # a prime: the pattern comes to lie everywhere
    some_input, some_grad = torch.randn(2, period, generator=torch.Generator().manual_seed(0))
    some_grad = some_grad.abs() * some_input.sign()
    repeats, rest = divmod(numel, period)
    input = some_input.repeat(repeats + 1)[:numel].to(device)
    grad_output = some_grad.repeat(repeats + 1)[:numel].to(device)
    input.requires_grad_()
    epsilon = torch.tensor([0.01], device=device, requires_grad=True)
    output = crrelu_ext.crrelu(input, epsilon)
    _, both = torch.autograd.grad(output, (input, epsilon), grad_output, retain_graph=True)
    sums = [both.item()]
    for count in THREADS:
        torch.set_num_threads(count)
        (alone,) = torch.autograd.grad(output, epsilon, grad_output, retain_graph=True)
        sums.append(alone.item())
    assert set(sums) == {sums[0]}
    terms = to_numpy(some_grad) * Formula(to_numpy(some_input)).epsilon_derivative().second
    exact = repeats * terms.sum() + terms[:rest].sum()
    assert abs(sums[0] - exact) <= TOLERANCES[torch.float32].epsilon_gradient * exact
