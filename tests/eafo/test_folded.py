"""Activations that are not monotone, against the folded density by other means."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import expit, ndtr
from torch import Tensor
from torch.distributions import Distribution, Laplace, Normal
from torch.nn import functional as F

from crrelu_ext import eafo
from crrelu_ext.reference import crrelu

from .cases import NORMAL, logistic


def crrelu_at(epsilon: float) -> Callable[[Tensor], Tensor]:
    return lambda x: crrelu(x, torch.tensor([epsilon], dtype=torch.float64))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "SiLU": F.silu,
    "GELU": F.gelu,
    "Mish": F.mish,
    "CRReLU 0.3": crrelu_at(0.3),  # a fold at -1, a kink at 0
    "CRReLU -0.3": crrelu_at(-0.3),  # folds at -1 and, by a kink, at 0
    "CRReLU -1.5": crrelu_at(-1.5),  # four folds
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_entropy_of_the_histogram(name: str) -> None:
    """The probability of 200 intervals of z, exact by sorting a million quantiles of x."""
    activation = ACTIVATIONS[name]
    u = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    z = activation(torch.special.ndtri(u)).numpy()
    entropies = []
    for bins in (1000, 2000, 4000):
        counts, edges = np.histogram(z, bins=bins)
        p = counts[counts > 0] / counts.sum()
        entropies.append(-(p * np.log(p)).sum() + np.log(edges[1] - edges[0]))
    # q is infinite at a fold, like an inverse root: the bins' error falls with the root of width.
    exact = eafo.output_entropy(activation, NORMAL)
    assert abs(entropies[-1] - exact) < 0.03
    assert abs(entropies[-1] - exact) < abs(entropies[0] - exact) + 1e-3


def gelu_slope(x: float) -> float:
    return float(ndtr(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi))


@pytest.mark.parametrize(
    ("activation", "f", "slope", "density", "scipy_density"),
    [
        (F.silu, lambda x: x * expit(x), lambda x: expit(x) * (1 + x * expit(-x)), *densities)
        for densities in (
            (Normal(0.0, 8.0), scipy.stats.norm(0, 8)),
            (Laplace(0.0, 2.0), scipy.stats.laplace(0, 2)),
            (Laplace(0.0, 4.0), scipy.stats.laplace(0, 4)),
        )
    ]
    + [(F.gelu, lambda x: x * ndtr(x), gelu_slope, Normal(0.0, 2.1), scipy.stats.norm(0, 2.1))],
)
def test_entropy_by_quadrature_where_the_slope_is_tiny_in_a_tail(
    activation: Callable[[Tensor], Tensor],
    f: Callable[[float], float],
    slope: Callable[[float], float],
    density: Distribution,
    scipy_density: scipy.stats.rv_continuous,
) -> None:
    fold = brentq(slope, -2, -0.5, xtol=1e-15)

    def term(x: float) -> float:
        """-p log q(f(x)), with the other place of that value."""
        q = scipy_density.pdf(x) / abs(slope(x))
        if x < 0:
            ends = (fold, 0) if x < fold else (-700, fold)
            other = brentq(lambda y: f(y) - f(x), *ends, xtol=1e-300, rtol=1e-15)
            q += scipy_density.pdf(other) / abs(slope(other))
        return float(-scipy_density.pdf(x) * np.log(q)) if q else 0.0

    far = scipy_density.isf(1e-12)
    cuts = (-far, -8, -4, fold, -0.5, -1e-2, -1e-4, -1e-8, 0, far)
    exact = sum(quad(term, *ends, limit=200)[0] for ends in pairwise(cuts))
    assert eafo.output_entropy(activation, density) == pytest.approx(exact, abs=1e-6)


def test_correction_of_silu() -> None:
    """w (log q)'(f(x)) with w = |f'|⁴ p, from preimages and derivatives by other means."""

    def f(x: float) -> float:
        return float(x / (1 + np.exp(-x)))

    def density_over_slope(x: float) -> float:
        s = 1 / (1 + np.exp(-x))
        return float(np.exp(-x * x / 2) / np.sqrt(2 * np.pi) / abs(s + x * s * (1 - s)))

    fold = brentq(lambda x: 1 + x / (1 + np.exp(x)), -2, -1, xtol=1e-15)

    def q(z: float) -> float:
        total = density_over_slope(brentq(lambda x: f(x) - z, fold, 10, xtol=1e-15))
        if z < -1e-12:
            total += density_over_slope(brentq(lambda x: f(x) - z, -40, fold, xtol=1e-15))
        return total

    D = eafo.correction(F.silu, NORMAL)
    for x in (-4.0, -2.5, -1.6, -1.0, -0.5, 0.5, 1.5, 3.0):
        s = 1 / (1 + np.exp(-x))
        z, h = f(x), 1e-5 * abs(f(x))
        log_slope = (np.log(q(z + h)) - np.log(q(z - h))) / (2 * h)
        p = np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
        exact = (s + x * s * (1 - s)) ** 4 * p * log_slope
        assert D(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("fixed_variance", [False, True])
def test_entropy_falls_to_first_order(name: str, fixed_variance: bool) -> None:
    activation = ACTIVATIONS[name]
    errors = []
    for size in (2e-3, 1e-3):
        (step,) = eafo.improve(
            activation, NORMAL, step_size=size, fixed_variance=fixed_variance
        ).steps
        assert step.step_size == size
        assert step.entropy_after < step.entropy_before
        fall = (step.entropy_after - step.entropy_before) / size
        errors.append(abs(fall - step.slope))
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_improving_keeps_the_folds_where_they_are(name: str) -> None:
    activation = ACTIVATIONS[name]
    improved = eafo.improve(activation, NORMAL).activation
    x = torch.linspace(-6, 6, 10_000, dtype=torch.float64)  # no kink among them
    before = torch.func.vmap(torch.func.grad(activation))(x)
    after = torch.func.vmap(torch.func.grad(improved))(x)
    assert (before * after >= 0).all()


def test_other_densities() -> None:
    for activation in (F.silu, F.mish):
        result = eafo.improve(activation, logistic())
        assert result.steps[0].entropy_after < result.steps[0].entropy_before
