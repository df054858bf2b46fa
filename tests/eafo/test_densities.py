"""Densities from samples and histograms, and what is refused."""

from __future__ import annotations

import math

import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    Exponential,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
    TransformedDistribution,
    Uniform,
)
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from crrelu_ext import eafo

from .cases import NORMAL, identity


def test_bandwidths_are_the_normal_reference() -> None:
    samples = torch.randn(4096, dtype=torch.float64) * 3
    density = eafo.SampleDensity(samples)
    sigma = samples.std().item()
    assert density.bandwidth == pytest.approx(sigma * (4 / 3) ** 0.2 * 4096**-0.2)
    assert density.derivative_bandwidth == pytest.approx(
        sigma * (4 / 5) ** (1 / 7) * 4096 ** (-1 / 7)
    )


def test_samples_give_the_kernel_estimate() -> None:
    """Against scipy's kernel estimate, with no bins: p, and p' of the wider kernels."""
    samples = torch.randn(2000, dtype=torch.float64)
    density = eafo.SampleDensity(samples)
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    sigma = samples.std().item()
    kde = scipy.stats.gaussian_kde(samples.numpy(), density.bandwidth / sigma)
    assert torch.allclose(density.log_prob(x).exp(), torch.from_numpy(kde(x.numpy())), atol=5e-4)
    h = 1e-4
    wide = scipy.stats.gaussian_kde(samples.numpy(), density.derivative_bandwidth / sigma)
    slope = (wide(x.numpy() + h) - wide(x.numpy() - h)) / (2 * h)
    assert torch.allclose(density.derivative(x), torch.from_numpy(slope), atol=5e-4)


def test_entropy_of_samples_is_near_that_of_their_density() -> None:
    samples = torch.randn(20_000)
    for activation in (identity, F.softplus, F.silu):
        exact = eafo.output_entropy(activation, NORMAL)
        estimate = eafo.output_entropy(activation, eafo.SampleDensity(samples))
        assert estimate == pytest.approx(exact, abs=0.03)


def test_correction_of_samples_is_near_that_of_their_density() -> None:
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    estimate = eafo.correction(F.softplus, eafo.SampleDensity(torch.randn(100_000)))(x)
    assert (estimate - eafo.correction(F.softplus, NORMAL)(x)).abs().max() < 0.05


def test_improving_under_samples() -> None:
    density = eafo.SampleDensity(torch.randn(5000) * 2 + 1)
    result = eafo.improve(F.softplus, density, steps=2)
    assert result.steps[-1].entropy_after < result.steps[0].entropy_before
    assert eafo.output_entropy(result.activation, density) < result.steps[0].entropy_before


def test_a_histogram_of_narrow_bins_is_like_its_samples() -> None:
    samples = torch.randn(10_000, dtype=torch.float64)
    edges = torch.linspace(-5, 5, 401, dtype=torch.float64)
    counts = torch.histogram(samples, edges).hist
    histogram, direct = eafo.HistogramDensity(edges, counts), eafo.SampleDensity(samples)
    assert histogram.bandwidth == pytest.approx(direct.bandwidth, rel=1e-3)
    assert eafo.output_entropy(F.softplus, histogram) == pytest.approx(
        eafo.output_entropy(F.softplus, direct), abs=1e-3
    )


def test_coarse_bins_do_not_show() -> None:
    edges = torch.linspace(-5, 5, 21, dtype=torch.float64)
    counts = torch.histogram(torch.randn(1_000_000, dtype=torch.float64), edges).hist
    histogram = eafo.HistogramDensity(edges, counts)
    assert histogram.bandwidth == pytest.approx(0.5)
    smoothed = eafo.output_entropy(identity, Normal(0.0, math.sqrt(1 + 0.5**2 + 0.5**2 / 12)))
    assert eafo.output_entropy(identity, histogram) == pytest.approx(smoothed, abs=0.01)


@pytest.mark.parametrize(
    ("samples", "match"),
    [
        (torch.randn(99), "99 values; at least 100"),
        (torch.randn(0), "0 values"),
        (
            torch.cat([torch.randn(200), torch.tensor([math.nan, math.inf])]),
            "2 values that are not",
        ),
        (torch.full((200,), 3.0), "all alike"),
    ],
)
def test_samples_that_are_refused(samples: torch.Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        eafo.SampleDensity(samples)


EDGES = torch.tensor([0.0, 1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("edges", "counts", "match"),
    [
        (EDGES, torch.ones(4), "shapes"),
        (EDGES[None], torch.ones(3), "shapes"),
        (EDGES.flip(0), torch.full((3,), 50.0), "increasing"),
        (EDGES / 0, torch.full((3,), 50.0), "increasing"),
        (EDGES, torch.tensor([100.0, -1.0, 5.0]), "negative"),
        (EDGES, torch.tensor([100.0, math.nan, 5.0]), "negative or not finite"),
        (EDGES, torch.tensor([10.0, 20.0, 5.0]), "35 samples"),
        (EDGES, torch.tensor([0.0, 200.0, 0.0]), "one bin"),
    ],
)
def test_histograms_that_are_refused(edges: torch.Tensor, counts: torch.Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        eafo.HistogramDensity(edges, counts)


def test_what_is_no_density_is_refused() -> None:
    with pytest.raises(TypeError, match="density has type float"):
        eafo.output_entropy(identity, 3.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        eafo.output_entropy(identity, Normal(torch.zeros(2), torch.ones(2)))
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        eafo.output_entropy(identity, MultivariateNormal(torch.zeros(2), torch.eye(2)))
    with pytest.raises(TypeError, match="samples has type list; allowed is"):
        eafo.SampleDensity([1.0, 2.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="counts has type list; allowed is"):
        eafo.HistogramDensity(torch.arange(3.0), [1.0, 2.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"samples has dtype torch.complex64; allowed are real"):
        eafo.SampleDensity(torch.randn(200, dtype=torch.complex64))
    with pytest.raises(ValueError, match="discrete"):
        eafo.output_entropy(identity, Bernoulli(0.3))


class Bare(Distribution):
    """Without support and samples."""

    def __init__(self) -> None:
        super().__init__(validate_args=False)


def mixture(components: Distribution) -> Distribution:
    return MixtureSameFamily(Categorical(torch.ones(2)), components)


PAIR = torch.tensor([1.0, 2.0])


@pytest.mark.parametrize("checks", [True, False])
def test_densities_without_what_is_needed_are_refused(
    checks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Distribution, "_validate_args", checks)
    for density in (
        mixture(Uniform(0 * PAIR, PAIR)),
        TransformedDistribution(Uniform(0.0, 1.0), [AffineTransform(0.0, 2.0)]),
    ):
        with pytest.raises(ValueError, match="no log_prob at some points of what it calls"):
            eafo.output_entropy(identity, density)
    with pytest.raises(ValueError, match="type Bare, without support or samples"):
        eafo.output_entropy(identity, Bare())
    huge = Normal(torch.tensor(0.0).double(), 1e300)
    with pytest.raises(ValueError, match=r"quartiles -6.*e\+299 .*up to 1e\+100"):
        eafo.output_entropy(identity, huge)


def test_mixtures_with_a_bounded_support() -> None:
    def minus_p_log_p(x: float) -> float:
        p = math.exp(-x) / 2 + math.exp(-2 * x)
        return -p * math.log(p)

    exact = scipy.integrate.quad(minus_p_log_p, 0, 50)[0]
    entropy = eafo.output_entropy(identity, mixture(Exponential(PAIR)))
    assert entropy == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(
    "density",
    [
        eafo.SampleDensity(torch.cat([torch.zeros(800), torch.linspace(-2, 2, 200)])),
        eafo.SampleDensity(torch.tan(torch.linspace(-1.57, 1.57, 5000))),  # Cauchy's quantiles
        eafo.HistogramDensity(torch.arange(4.0), torch.tensor([5.0, 190.0, 5.0])),
    ],
)
def test_ties_and_outliers(density: eafo.SampleDensity) -> None:
    """The scale is never below the bandwidth, so that steps are as wide as the smoothing."""
    result = eafo.improve(identity, density, functions=8, steps=5)
    assert len(result.steps) == 5
    assert result.steps[0].entropy_before - result.steps[-1].entropy_after > 0.5
    assert getattr(result.activation, "scale") >= density.bandwidth  # noqa: B009


def test_the_masses_add_up_and_many_points_take_little_memory() -> None:
    density = eafo.SampleDensity(torch.randn(1003))
    counts = 1003 * density.masses.double()
    assert torch.allclose(counts, counts.round(), rtol=0, atol=1e-12)
    assert counts.sum().item() == pytest.approx(1003)
    x = torch.linspace(-3, 3, 60_000).double().reshape(2, -1)
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            largest = max(largest, result.numel() if isinstance(result, Tensor) else 0)
            return result

    with Largest():
        p, dp = density.log_prob(x).exp(), density.derivative(x)
    assert largest <= 2**20
    assert torch.equal(p[1, ::1000], density.log_prob(x[1, ::1000]).exp())
    assert torch.equal(dp[1, ::1000], density.derivative(x[1, ::1000]))


def test_bounded_supports() -> None:
    assert eafo.output_entropy(identity, Exponential(2.0)) == pytest.approx(
        1 - math.log(2), abs=1e-6
    )
    exact = scipy.stats.beta(3, 4).entropy()
    assert eafo.output_entropy(identity, Beta(3.0, 4.0)) == pytest.approx(exact, abs=1e-6)
    assert eafo.output_entropy(torch.log, LogNormal(0.0, 1.0)) == pytest.approx(1.4189385, abs=1e-6)
    with pytest.raises(ValueError, match="D jumps at x = 0"):
        eafo.improve(identity, Exponential(2.0))


def test_the_given_density_and_the_generator_are_left_alone() -> None:
    density = StudentT(torch.tensor(3.0))
    state = torch.random.get_rng_state()
    eafo.improve(torch.asinh, density)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert density.df.dtype == torch.float32
