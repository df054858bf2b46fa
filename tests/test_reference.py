"""The composed formula, which is the fallback without kernels, against wider arithmetic.

It is composed of operators that round one after the other, so its bounds are wide; its limits are
those of the kernels. Its arguments are tested in test_arguments.py, its derivatives of higher order
in test_gradients.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from crrelu_ext import reference

from .oracle import Array, Formula, Terms, exact_numbers, to_numpy

EPSILONS = (0.01, -0.5, -1.69, 1.0, 0.0, 3.7, -1e30)  # far on, autograd's ε · x overflows
ROUNDINGS = 5  # that count, on the way to each result


class Results(NamedTuple):
    output: Tensor
    grad_input: Tensor
    grad_epsilon: Tensor


def evaluate(
    input: Tensor, epsilon: Tensor, grad_output: Tensor | None = None, channel_dim: int = 1
) -> Results:
    input, epsilon = input.detach().requires_grad_(), epsilon.detach().requires_grad_()
    output = reference.crrelu(input, epsilon, channel_dim=channel_dim)
    if grad_output is None:
        grad_output = torch.ones_like(output)
    return Results(output.detach(), *torch.autograd.grad(output, (input, epsilon), grad_output))


def evaluate_each(x: Tensor, epsilon: float) -> Results:
    """f, f' and ∂f/∂ε of each x, which has a copy of epsilon for itself."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    each = torch.full(x.shape, epsilon, dtype=dtype, device=x.device)
    output, grad_input, grad_epsilon = evaluate(x[None], each)
    return Results(output[0], grad_input[0], grad_epsilon)


def assert_right(actual: Tensor, terms: Terms, scale: Array, input_dtype: torch.dtype) -> None:
    """Within some roundings of quantities of this scale, and one to the dtype of the result."""
    computed = torch.finfo(torch.float64 if input_dtype == torch.float64 else torch.float32)
    stored = torch.finfo(actual.dtype)
    exact = terms.first + terms.second
    bound = ROUNDINGS * computed.eps * scale + stored.eps / 2 * abs(exact).astype(float)
    bound += ROUNDINGS * computed.smallest_normal + stored.smallest_normal * stored.eps
    assert (abs(exact_numbers(actual) - exact) <= bound).all()


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_accuracy(device: str, dtype: torch.dtype, epsilon: float) -> None:
    epsilon = float(np.float32(epsilon))
    x = torch.linspace(-9, 9, 900 if dtype == torch.float64 else 20_001, dtype=torch.float64).to(
        dtype
    )
    if torch.finfo(dtype).max < abs(epsilon):
        x = x[:0]  # beyond the largest float16 there is nothing to round to
    output, grad_input, grad_epsilon = evaluate_each(x.to(device), epsilon)
    formula, x_ = Formula(exact_numbers(x)), to_numpy(x)
    # The rounding of x²/2 is that part of exp(-x²/2); and 1 - x² comes as a difference.
    gaussian = np.exp(-x_ * x_ / 2) * (1 + x_ * x_ / 2)
    bump, bump_slope = abs(x_) * gaussian, (1 + x_ * x_) * gaussian
    scale = np.maximum(x_, 0) + abs(epsilon) * bump
    assert_right(output, formula.value(epsilon), scale, dtype)
    scale = 1 + abs(epsilon) * bump_slope
    assert_right(grad_input, formula.input_derivative(epsilon), scale, dtype)
    assert_right(grad_epsilon, formula.epsilon_derivative(), bump, dtype)


@pytest.mark.parametrize("epsilon", [*EPSILONS, -3e38, 1e-40])
def test_limits(device: str, dtype: torch.dtype, epsilon: float) -> None:
    powers = 2.0 ** torch.arange(6, 1023, dtype=torch.float64)
    far = torch.cat([powers, torch.tensor([torch.finfo(dtype).max, torch.inf])]).to(dtype)
    x = torch.cat([far, -far]).to(device)
    results = evaluate_each(x, epsilon)
    assert torch.equal(results.output, x.clamp(min=0))
    assert torch.equal(results.grad_input, (x > 0).to(dtype))
    assert not results.grad_epsilon.any()


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_at_the_kink(device: str, dtype: torch.dtype, epsilon: float) -> None:
    if torch.finfo(dtype).max < abs(epsilon):
        epsilon = 1.0
    x = torch.tensor([0.0, -0.0], dtype=dtype, device=device)
    results = evaluate_each(x, epsilon)
    assert not results.output.any()
    assert torch.equal(results.grad_input, torch.full_like(x, epsilon))
    assert not results.grad_epsilon.any()


def test_nan(device: str, dtype: torch.dtype) -> None:
    x = torch.tensor([torch.nan, 1.0, torch.nan], dtype=dtype, device=device)
    for tensor in evaluate_each(x, 0.5):
        assert tensor.isnan().tolist() == [True, False, True]
    x = torch.tensor([-torch.inf, -1.0, 0.0, torch.inf], dtype=dtype, device=device)
    results = evaluate_each(x, torch.nan)
    assert results.output.isnan().all()
    # Where the bump has vanished so has its derivative, whatever epsilon is.
    assert results.grad_input.isnan().tolist() == [False, True, True, False]
    assert results.grad_epsilon.isfinite().all()


@st.composite
def shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], int | None]:
    """A shape, and the dimension that has an epsilon per channel, or None."""
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    dims = st.integers(-len(shape), len(shape) - 1) if shape else st.nothing()
    return shape, draw(st.none() | dims)


@given(shapes())
def test_shapes(case: tuple[tuple[int, ...], int | None]) -> None:
    shape, channel_dim = case
    channels = 1 if channel_dim is None else shape[channel_dim]
    generator = torch.Generator().manual_seed(0)
    input, grad_output = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    epsilon = torch.linspace(-1.7, 0.5, channels, dtype=torch.float64)
    results = evaluate(input, epsilon, grad_output, 1 if channel_dim is None else channel_dim)
    assert [t.shape for t in results] == [input.shape, input.shape, epsilon.shape]

    along = [1] * len(shape)
    if channel_dim is not None:
        along[channel_dim] = channels
    x, grad, parameter = to_numpy(input), to_numpy(grad_output), to_numpy(epsilon).reshape(along)
    formula = Formula(x)
    np.testing.assert_allclose(results.output, sum(formula.value(parameter)), atol=1e-13)
    slope = sum(formula.input_derivative(parameter))
    np.testing.assert_allclose(results.grad_input, grad * slope, atol=1e-13)
    shares = grad * formula.epsilon_derivative().second
    axes = tuple(d for d in range(len(shape)) if along[d] == 1)
    if channel_dim is None:
        axes = tuple(range(len(shape)))
    sums = shares.sum(axes).reshape(channels)
    np.testing.assert_allclose(results.grad_epsilon, sums, atol=1e-12)
