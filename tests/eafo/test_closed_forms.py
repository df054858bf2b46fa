"""Known answers: closed forms, and integrals by scipy of derivatives worked out by hand."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Cauchy,
    Distribution,
    FisherSnedecor,
    Gamma,
    Laplace,
    LogNormal,
    Normal,
    StudentT,
    Uniform,
    VonMises,
)
from torch.nn import functional as F

from crrelu_ext import eafo

from .cases import NORMAL, identity, logistic, normals

TOLERANCE = 1e-6
H0 = 0.5 * math.log(2 * math.pi * math.e)
SQRT_PI = math.sqrt(math.pi)


def phi(x: Tensor) -> Tensor:
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def bump(epsilon: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x + epsilon * x * torch.exp(-x * x / 2)


def log_cosh(x: float) -> float:
    return abs(x) + math.log1p(math.exp(-2 * abs(x))) - math.log(2)


def affine(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: factor * x + 3


@pytest.mark.parametrize(
    ("activation", "density", "entropy"),
    [
        (bump(-0.1), NORMAL, 1.3815550),
        (bump(0.1), NORMAL, 1.4524594),
        (torch.sigmoid, logistic(), 0.0),
        (F.softplus, NORMAL, 0.6128793),
        (identity, NORMAL, H0),
        (affine(0.5), NORMAL, H0 - math.log(2)),
        (affine(-2.0), NORMAL, H0 + math.log(2)),
        (identity, Normal(1000.0, 0.01), H0 - math.log(100)),
        (identity, logistic(), 2.0),
        (identity, Laplace(0.0, 3.0), 1 + math.log(6)),
        (identity, Uniform(-2.0, 5.0), math.log(7)),
        (identity, Cauchy(0.0, 1.0), math.log(4 * math.pi)),
        (identity, StudentT(3.0), scipy.stats.t(3).entropy()),
        (torch.exp, Normal(0.5, 2.0), 0.5 + H0 + math.log(2)),
        (lambda x: torch.where(x < 0.3, x, x + 5), NORMAL, H0),  # jumps along its slope
        (
            lambda x: torch.where(x < 0.3, x, 2 * x + 5),
            NORMAL,
            H0 + math.log(2) * scipy.stats.norm.sf(0.3),
        ),
        (torch.square, NORMAL, scipy.stats.chi2(1).entropy()),  # two branches
        (torch.abs, NORMAL, 0.5 * math.log(math.pi * math.e / 2)),
        (torch.abs, Laplace(0.0, 1.0), 1.0),
        (torch.atan, Cauchy(0.0, 1.0), math.log(math.pi)),
        (
            lambda x: torch.cos(math.pi * x),
            Uniform(0.0, 6.0),
            math.log(math.pi / 2),
        ),  # six branches
    ],
)
def test_entropy(
    activation: Callable[[Tensor], Tensor], density: Distribution, entropy: float
) -> None:
    assert eafo.output_entropy(activation, density) == pytest.approx(entropy, abs=TOLERANCE)


def test_entropy_of_a_small_bump_follows_its_series() -> None:
    for epsilon in (-0.02, -0.01, 0.01, 0.02):
        series = H0 + 0.3535534 * epsilon - 0.1924501 * epsilon**2 + 0.0963542 * epsilon**3
        assert eafo.output_entropy(bump(epsilon), NORMAL) == pytest.approx(series, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("activation", "log_slope", "density", "scipy_density"),
    [
        (torch.tanh, lambda x: -2 * log_cosh(x), NORMAL, scipy.stats.norm()),
        (torch.tanh, lambda x: -2 * log_cosh(x), Laplace(0.0, 1.0), scipy.stats.laplace()),
        (torch.sinh, lambda x: log_cosh(x), Normal(1.0, 2.0), scipy.stats.norm(1, 2)),
        (torch.asinh, lambda x: -math.log1p(x * x) / 2, StudentT(3.0), scipy.stats.t(3)),
        (F.elu, lambda x: min(x, 0), NORMAL, scipy.stats.norm()),
        (F.leaky_relu, lambda x: math.log(0.01) if x < 0 else 0, NORMAL, scipy.stats.norm()),
        (F.softsign, lambda x: -2 * math.log1p(abs(x)), logistic(2.0), scipy.stats.logistic(0, 2)),
    ],
)
def test_entropy_by_quadrature(
    activation: Callable[[Tensor], Tensor],
    log_slope: Callable[[float], float],
    density: Distribution,
    scipy_density: scipy.stats.rv_continuous,
) -> None:
    """H = h(X) + E[log f']."""
    halves = [
        scipy.integrate.quad(
            lambda x: scipy_density.pdf(x) * log_slope(x), *ends, epsabs=1e-10, limit=500
        )[0]
        for ends in ((-math.inf, 0), (0, math.inf))
    ]
    exact = scipy_density.entropy() + sum(halves)
    assert eafo.output_entropy(activation, density) == pytest.approx(exact, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("density", "distribution_function"),
    [
        (NORMAL, lambda x: torch.erf(x / math.sqrt(2))),
        (logistic(0.7), lambda x: torch.tanh(x / 1.4)),
        (Laplace(0.0, 2.0), lambda x: torch.sign(x) * -torch.expm1(-x.abs() / 2)),
        (Uniform(-3.0, 3.0), lambda x: x / 3),
    ],
)
def test_worst_activation(
    density: Distribution, distribution_function: Callable[[Tensor], Tensor]
) -> None:
    worst = eafo.worst_activation(density)
    x = torch.linspace(-2.9, 2.9, 201, dtype=torch.float64)
    assert torch.allclose(worst(x), distribution_function(x), rtol=0, atol=TOLERANCE)
    for activation in (worst, distribution_function):
        assert eafo.output_entropy(activation, density) == pytest.approx(math.log(2), abs=TOLERANCE)
        assert eafo.correction(activation, density)(x).abs().max() < TOLERANCE
        assert eafo.entropy_slope(activation, density) == pytest.approx(0, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("density", "scipy_density"),
    [
        # Bounds off which rounding moves a knot.
        (Beta(1.0, 3.0), scipy.stats.beta(1, 3)),
        (FisherSnedecor(2.0, 3.0), scipy.stats.f(2, 3)),
        (Uniform(-0.75, 0.0625), scipy.stats.uniform(-0.75, 0.8125)),
        (LogNormal(0.0, 1.0), scipy.stats.lognorm(1)),  # needs more knots
    ],
)
def test_worst_activation_is_the_distribution_function(
    density: Distribution, scipy_density: scipy.stats.rv_continuous
) -> None:
    x = torch.from_numpy(scipy_density.ppf(np.linspace(0.001, 0.999, 201)))
    exact = torch.from_numpy(scipy_density.cdf(x.numpy()))
    worst = eafo.worst_activation(density, np.int64(0), np.float32(1))  # type: ignore[arg-type]
    for f in (worst, pickle.loads(pickle.dumps(worst))):
        assert torch.allclose(f(x), exact, rtol=0, atol=3e-8)
        assert torch.allclose(f.jet(x).first, density.log_prob(x).exp().double(), rtol=1e-6)


@pytest.mark.parametrize(
    "density",
    [Beta(0.5, 0.5), Gamma(0.3, 1.0), VonMises(*torch.tensor([0.0, 2.0])), LogNormal(0.0, 3.0)],
)
def test_worst_activations_whose_mass_is_lost_are_refused(density: Distribution) -> None:
    with pytest.raises(ValueError, match="density integrates to 1 but for"):
        eafo.worst_activation(density)


def test_worst_activation_has_the_bounds_asked_for() -> None:
    for density in (StudentT(3.0), normals((0.3, -2, 0.5), (0.7, 1, 1))):
        worst = eafo.worst_activation(density, -3, 7)
        assert eafo.output_entropy(worst, density) == pytest.approx(math.log(10), abs=TOLERANCE)
        ends = worst(torch.tensor([-1e6, 1e6], dtype=torch.float64))
        assert torch.allclose(ends, torch.tensor([-3.0, 7.0]).double(), rtol=0, atol=1e-8)


X = torch.linspace(-5, 5, 101, dtype=torch.float64)


@pytest.mark.parametrize(
    ("activation", "density", "correction"),
    [
        (identity, NORMAL, -X * phi(X)),
        (affine(-2.0), NORMAL, X * phi(X)),
        (F.softplus, NORMAL, -phi(X) * (X + 1 - torch.sigmoid(X))),
        (torch.sigmoid, logistic(), torch.zeros_like(X)),
        (torch.exp, NORMAL, -phi(X) * (X + 1)),
        (torch.tanh, NORMAL, phi(X) * (2 * torch.tanh(X) - X)),
        (identity, Cauchy(0.0, 1.0), -2 * X / math.pi / (1 + X * X) ** 2),
        (lambda x: F.leaky_relu(x, 0.3), NORMAL, -X * phi(X)),  # of a line of any slope the same
    ],
)
def test_correction(
    activation: Callable[[Tensor], Tensor], density: Distribution, correction: Tensor
) -> None:
    actual = eafo.correction(activation, density)(X)
    assert torch.allclose(actual, correction, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("activation", "density", "slope"),
    [
        (identity, NORMAL, -1 / (4 * SQRT_PI)),
        (F.softplus, NORMAL, -3 * math.exp(0.25) / (8 * SQRT_PI)),
        (torch.sigmoid, logistic(), 0.0),
        (identity, logistic(), -1 / 30),
        (identity, Cauchy(0.0, 1.0), -1 / (4 * math.pi)),
        (identity, Normal(3.0, 2.0), -1 / (32 * SQRT_PI)),
        (affine(-2.0), NORMAL, -1 / (8 * SQRT_PI)),
        (torch.exp, NORMAL, -3 * math.exp(0.25) / (8 * SQRT_PI)),
        (lambda x: F.leaky_relu(x, 0.25), NORMAL, -5 / 2 / (4 * SQRT_PI)),
    ],
)
def test_entropy_slope(
    activation: Callable[[Tensor], Tensor], density: Distribution, slope: float
) -> None:
    assert eafo.entropy_slope(activation, density) == pytest.approx(slope, abs=TOLERANCE)


def test_inverse_correction() -> None:
    z = torch.linspace(-5, 5, 101, dtype=torch.float64)
    eta = eafo.inverse_correction(identity, NORMAL)
    assert torch.allclose(eta(z), z * phi(z), rtol=0, atol=TOLERANCE)
    # Of the exponential: y = log z, y' = 1/z, y'' = -1/z², so eta = phi(y) (y + 1) / z.
    z = torch.linspace(0.01, 20, 101, dtype=torch.float64)
    y = z.log()
    eta = eafo.inverse_correction(torch.exp, NORMAL)
    assert torch.allclose(eta(z), phi(y) * (y + 1) / z, rtol=0, atol=TOLERANCE)
    assert eta(z.float().reshape(1, -1)).dtype == torch.float32
    with pytest.raises(ValueError, match="z has values outside"):
        eta(torch.tensor([-1.0]))


def test_inverse_correction_of_sigmoid_under_logistic_is_zero() -> None:
    z = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    eta = eafo.inverse_correction(torch.sigmoid, logistic())
    assert eta(z).abs().max() < TOLERANCE


def test_closed_form_derivatives_are_taken() -> None:
    softplus = eafo.ClosedForm(
        F.softplus, torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x)
    )
    for function in (eafo.output_entropy, eafo.entropy_slope):
        assert function(softplus, NORMAL) == pytest.approx(function(F.softplus, NORMAL), abs=1e-12)


@pytest.mark.parametrize("epsilon", [-1.7, -0.5, 0.0, 0.01, 0.5, 3.0, 40.0])
def test_crrelu_inverse_error_is_within_its_bound(epsilon: float) -> None:
    error = eafo.crrelu_inverse_error(epsilon)
    assert error.bound == pytest.approx(0.60653066 * epsilon**2)
    assert error.measured <= error.bound
    x = torch.linspace(0, 20, 100_001, dtype=torch.float64)
    z = bump(epsilon)(x)
    errors = (z - epsilon * z * torch.exp(-z * z / 2) - x).abs()
    assert error.measured >= errors.max() - 1e-12
    if epsilon:
        assert error.measured > 0
