"""Derivatives, roots, and the places where the line is cut; and how often f is called for them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Laplace, Normal, Uniform
from torch.nn import functional as F

from crrelu_ext import eafo
from crrelu_ext.eafo.activations import jet
from crrelu_ext.eafo.cuts import solve
from crrelu_ext.eafo.problem import analyse
from crrelu_ext.reference import crrelu

from .cases import NORMAL, logistic

X = torch.linspace(-3, 3, 25, dtype=torch.float64)


@pytest.mark.parametrize(
    ("function", "value", "first", "second"),
    [
        (torch.sin, X.sin(), X.cos(), -X.sin()),
        (lambda x: x, X, torch.ones(25), torch.zeros(25)),
        (lambda x: 2 - 3 * x, 2 - 3 * X, torch.full((25,), -3.0), torch.zeros(25)),
        (torch.ones_like, torch.ones(25), torch.zeros(25), torch.zeros(25)),
    ],
)
@pytest.mark.parametrize("inference_mode", [False, True])
def test_derivatives(
    function: Callable[[Tensor], Tensor],
    value: Tensor,
    first: Tensor,
    second: Tensor,
    inference_mode: bool,
) -> None:
    with torch.inference_mode(inference_mode):
        actual = jet(function, X)
    for derivative, expected in ((actual.value, value), (actual.first, first)):
        assert torch.allclose(derivative, expected.double(), rtol=0, atol=1e-15)
    assert torch.allclose(actual.second, second.double(), rtol=0, atol=1e-15)


def test_in_inference_mode() -> None:
    with torch.inference_mode():
        density = Normal(torch.tensor(0.0), torch.tensor(1.0))
        entropy = eafo.output_entropy(F.silu, density)
    assert entropy == eafo.output_entropy(F.silu, NORMAL)


@pytest.mark.parametrize(
    ("function", "inverse", "lower", "upper"),
    [
        (torch.exp, torch.log, -700.0, 700.0),
        (lambda x: -(x**3), lambda z: -z.sign() * z.abs() ** (1 / 3), -2.0, 5.0),  # flat at 0
        (torch.tanh, torch.atanh, -12.0, 12.0),
        (lambda x: 1e-200 * x, lambda z: 1e200 * z, -3.0, 2.0),
        (lambda x: x.where(x > 0, 0.01 * x), lambda z: z.where(z > 0, 100 * z), -3.0, 2.0),
    ],
)
def test_roots(
    function: Callable[[Tensor], Tensor],
    inverse: Callable[[Tensor], Tensor],
    lower: float,
    upper: float,
) -> None:
    ends = torch.tensor([lower, upper], dtype=torch.float64)
    at_lower, at_upper = function(ends)
    target = torch.lerp(at_lower, at_upper, torch.linspace(0, 1, 101, dtype=torch.float64))
    low, high = ends[:, None].expand(2, 101).contiguous()
    found = solve(function, target, low, high)
    exact = inverse(target)
    rounding = 4e-16 * target.abs() / jet(function, exact).first.abs()
    allowed = 1e-13 * exact.abs() + 1e-15 * max(abs(lower), abs(upper)) + rounding
    assert ((found - exact).abs() <= allowed)[1:-1].all()
    assert torch.allclose(found[[0, -1]], ends, rtol=1e-9)
    assert solve(function, target[:0], low[:0], high[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("activation", "density", "folds", "kinks"),
    [
        (F.silu, NORMAL, [-1.2784645427610738], []),
        (F.silu, Laplace(0.5, 1.0), [-1.2784645427610738], [0.5]),
        (lambda x: x.abs(), NORMAL, [0.0], []),
        (lambda x: crrelu(x, torch.tensor([-0.5]).double()), NORMAL, [-1.0, 0.0], []),
        (lambda x: F.leaky_relu(x - 0.3) + F.leaky_relu(x - 0.31), NORMAL, [], [0.3, 0.31]),
        (lambda x: torch.cos(math.pi * x), Uniform(0.25, 3.5), [1.0, 2.0, 3.0], []),
    ],
)
def test_places(
    activation: Callable[[Tensor], Tensor],
    density: Distribution,
    folds: list[float],
    kinks: list[float],
) -> None:
    problem = analyse(activation, density)
    assert problem.folds.tolist() == pytest.approx(folds, abs=1e-12)
    for kink in kinks:
        assert (problem.cuts - kink).abs().min() < 1e-12


@pytest.mark.parametrize("density", [NORMAL, Laplace(0.0, 1.0), logistic()], ids=str)
@pytest.mark.parametrize(
    "activation",
    [F.silu, F.mish, *(lambda x, e=e: crrelu(x, torch.tensor([e]).double()) for e in (0.01, -0.5))],
)
def test_few_calls(activation: Callable[[Tensor], Tensor], density: Distribution) -> None:
    """Roots beside kinks and folds, and in tails, are found in as few steps as elsewhere."""
    calls = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return activation(x)

    eafo.output_entropy(counted, density)
    assert calls <= 60
