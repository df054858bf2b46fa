"""What docs/theory.md states, numerically."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, StudentT
from torch.nn import functional as F

from crrelu_ext import eafo
from crrelu_ext.elementwise import Function

from .cases import NORMAL, identity, logistic, normals

DENSITIES = [NORMAL, logistic(), StudentT(4.0), normals((0.4, -1, 0.7), (0.6, 1.5, 1.0))]
X = torch.linspace(-3, 3, 121, dtype=torch.float64)


def log_output_density(f: eafo.ClosedForm, density: Distribution, x: Tensor) -> Tensor:
    return density.log_prob(x) - torch.func.vmap(torch.func.grad(f))(x).log()


@pytest.mark.parametrize("density", DENSITIES)
def test_proposition_1(density: Distribution) -> None:
    """The first integral: q is constant along an extremal, which so is a + (b - a) F.

    The integrand q log q of -H, q = p(y) y', does not hold z: y' ∂G/∂y' - G = q is conserved.
    """
    worst = eafo.worst_activation(density, -2, 3)
    q = log_output_density(worst, density, X).exp()
    assert torch.allclose(q, torch.full_like(q, 1 / 5), rtol=1e-5)
    y_slope = 1 / torch.func.vmap(torch.func.grad(worst))(X)
    p = density.log_prob(X).exp()
    G = p * y_slope * (p * y_slope).log()
    G_by_slope = p * ((p * y_slope).log() + 1)
    assert torch.allclose(y_slope * G_by_slope - G, q, rtol=1e-5)


def beside(worst: eafo.ClosedForm, epsilon: float) -> eafo.ClosedForm:
    """g(worst(x)) with g(u) = u + ε (1 - u²), a bijection of (-1, 1) for |ε| < ½."""

    def first(x: Tensor) -> Tensor:
        return worst.first(x) * (1 - 2 * epsilon * worst(x))

    def second(x: Tensor) -> Tensor:
        stretched = worst.second(x) * (1 - 2 * epsilon * worst(x))
        return stretched - 2 * epsilon * worst.first(x) ** 2

    return eafo.ClosedForm(lambda x: worst(x) + epsilon * (1 - worst(x) ** 2), first, second)


@pytest.mark.parametrize("density", DENSITIES)
def test_the_extremum_is_the_largest_entropy_with_these_bounds(density: Distribution) -> None:
    """H = log(b - a) - KL(q ‖ U(a, b)), with q the density of g(U): KL = -E[log g'(U)]."""
    worst = eafo.worst_activation(density)
    top = eafo.output_entropy(worst, density)
    u = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    for epsilon in (-0.3, -0.1, 0.1, 0.3):
        divergence = -(1 - 2 * epsilon * u).log().mean().item()
        assert divergence > 0
        entropy = eafo.output_entropy(beside(worst, epsilon), density)
        assert entropy == pytest.approx(top - divergence, abs=1e-5)


def test_legendre_condition() -> None:
    """∂²G/∂y'² = p/y' > 0: the extremal is a minimum of ∫ q log q, so a maximum of H.

    The second variation of H along f + C δ is -E[(δ'/f')²] for every δ, at every f.
    """

    def along(f: Function, slope: Function, c: float) -> Function:
        return lambda x: f(x) + c * slope(x) * torch.sin(x)

    for f, slope in ((F.softplus, torch.sigmoid), (torch.tanh, lambda x: 1 - torch.tanh(x) ** 2)):
        h = 1e-3
        low, middle, high = (eafo.output_entropy(along(f, slope, c), NORMAL) for c in (-h, 0, h))
        x = torch.linspace(-6.4, 6.4, 20_001, dtype=torch.float64, requires_grad=True)
        (change,) = torch.autograd.grad((slope(x) * torch.sin(x)).sum(), x)
        second = -torch.trapezoid(NORMAL.log_prob(x).exp() * (change / slope(x)) ** 2, x).item()
        assert second < 0
        assert (low - 2 * middle + high) / h**2 == pytest.approx(second, rel=1e-3)


def steep(factor: float) -> Function:
    return lambda x: torch.tanh(factor * x) + 1e-3 * x


def scaled(factor: float) -> Function:
    return lambda x: factor * torch.tanh(x)


def test_there_is_no_minimum() -> None:
    """The steeper the step in the middle of a function from -1 to 1, the lower H, without end."""
    entropies = [eafo.output_entropy(steep(factor), NORMAL) for factor in (1, 3, 10, 30, 100)]
    assert entropies == sorted(entropies, reverse=True)
    assert entropies[-1] < -4


def test_entropy_depends_on_scale_but_its_scale_free_part_does_not() -> None:
    small, large = eafo.compare({"small": scaled(0.1), "large": scaled(10)}, NORMAL)
    assert small.entropy is not None
    assert large.entropy == pytest.approx(small.entropy + math.log(100), abs=1e-9)
    assert large.scale_free_entropy == pytest.approx(small.scale_free_entropy, abs=1e-9)


def test_the_correction_descends_as_its_square() -> None:
    """dH/dC = -∫ D²/f' dx, an integral that entropy_slope does not take."""
    x = torch.linspace(-12, 12, 40_001, dtype=torch.float64)
    for activation, slope in ((F.softplus, torch.sigmoid), (identity, torch.ones_like)):
        for density in (NORMAL, Normal(0.5, 1.5)):
            D = eafo.correction(activation, density)(x)
            exact = -torch.trapezoid(D**2 / slope(x), x).item()
            assert eafo.entropy_slope(activation, density) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(
    "activation", [F.softplus, torch.tanh, F.elu, F.silu, F.gelu, F.mish, identity]
)
@pytest.mark.parametrize("density", [NORMAL, normals((0.4, -1, 0.7), (0.6, 1.5, 1.0))])
def test_monte_carlo(activation: eafo.ClosedForm, density: Distribution) -> None:
    """Vasicek's estimate from the spacings of samples, which knows nothing of f'."""
    torch.manual_seed(1)
    samples = activation(density.sample((400_000,)).double())
    estimate = scipy.stats.differential_entropy(samples.numpy(), method="vasicek")
    assert eafo.output_entropy(activation, density) == pytest.approx(estimate, abs=0.012)


def test_entropy_after_improvement_by_monte_carlo() -> None:
    torch.manual_seed(2)
    samples = torch.randn(400_000, dtype=torch.float64)
    for activation in (F.softplus, F.silu):
        result = eafo.improve(activation, NORMAL, steps=2)
        estimate = scipy.stats.differential_entropy(result.activation(samples).numpy())
        assert result.steps[-1].entropy_after == pytest.approx(estimate, abs=0.012)
