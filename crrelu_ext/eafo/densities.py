"""Densities of the pre-activation: torch.distributions, samples and histograms, seen alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform

from crrelu_ext.elementwise import recorded, slope_of

FEWEST_SAMPLES = 100
TAIL_MASS = 1e-10
"""The probability that is cut off at each end of an unbounded support."""
LARGEST = 1e100
"""Location and scale that are taken; squares of these are finite."""
_Number = TypeVar("_Number", float, Tensor)
_SQRT_2PI = math.sqrt(2 * math.pi)
_REACH = 7.0  # of a normal kernel, in bandwidths
_AT_ONCE = 2**20  # terms of the sums over kernels
_FAR = 30.0  # where the tails are looked for: location ± scale · sinh(30), 5e12 scales


class SampleDensity:
    """A density estimated from samples with normal kernels.

    p(x) = mean of N(x; sample, h0²) and p'(x) = mean of N'(x; sample, h1²), with the bandwidths
    that are best for a normal density: h0 = σ (4/3)^(1/5) n^(-1/5) and, as a derivative needs more
    smoothing, h1 = σ (4/5)^(1/7) n^(-1/7), σ the samples' standard deviation. The entropies that
    the engine gives are those of p, so of smoothed samples.

    Args:
        samples: any shape and float dtype, at least 100 finite values that differ.

    Raises:
        ValueError: too few samples, some not finite, or all alike. TypeError: no tensor, or a
            complex one.
    """

    def __init__(self, samples: Tensor) -> None:
        _refuse_unless_real("samples", samples)
        samples = samples.detach().double().cpu().flatten()
        n = samples.numel()
        if n < FEWEST_SAMPLES:
            raise ValueError(f"samples has {n} values; at least {FEWEST_SAMPLES} are needed")
        if not samples.isfinite().all():
            bad = n - int(samples.isfinite().sum())
            raise ValueError(f"samples has {bad} values that are not finite; leave those out")
        sigma = samples.std().item()
        if not sigma > 1e-12 * samples.abs().max().item():
            raise ValueError("samples are all alike: they have no density but an atom")
        self.bandwidth, self.derivative_bandwidth = bandwidths(n, sigma)
        # Gathered in bins of an eighth of the bandwidth, whose square that changes by 1/768.
        number = ((samples - samples.min()) / (self.bandwidth / 8)).floor().long()
        kept, inverse, counts = number.unique(return_inverse=True, return_counts=True)
        sums = torch.zeros(len(kept), dtype=torch.float64, device="cpu").index_add_(
            0, inverse, samples
        )
        self.centers, self.masses = sums / counts, counts.double() / n

    def log_prob(self, x: Tensor) -> Tensor:
        return self._in_parts(smoothed_log_prob, x, self.bandwidth)

    def derivative(self, x: Tensor) -> Tensor:
        """p'(x), from kernels of the wider bandwidth."""
        return self._in_parts(smoothed_derivative, x, self.derivative_bandwidth)

    def _in_parts(self, smoothed: Callable[..., Tensor], x: Tensor, bandwidth: float) -> Tensor:
        parts = x.flatten().split(max(1, _AT_ONCE // len(self.centers)))
        done = [smoothed(part, self.centers, self.masses, bandwidth) for part in parts]
        return torch.cat(done).view_as(x)


def _refuse_unless_real(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} has type {type(value).__name__}; allowed is a torch.Tensor")
    if value.is_complex():
        raise TypeError(f"{name} has dtype {value.dtype}; allowed are real ones")


def bandwidths(n: _Number, sigma: _Number) -> tuple[_Number, _Number]:
    """The kernels' h0 for p and h1 for p', from the number and the spread of the samples."""
    return sigma * (4 / 3 / n) ** (1 / 5), sigma * (4 / 5 / n) ** (1 / 7)


def smoothed_log_prob(
    x: Tensor, centers: Tensor, masses: Tensor, bandwidth: Tensor | float
) -> Tensor:
    """log p of masses that are smoothed with normal kernels, of one density or of many at once.

    Args:
        x: (..., knots); centers, masses: (..., bins), the masses adding up to 1.
        bandwidth: a number or (..., 1, 1).
    """
    u = (x[..., None] - centers[..., None, :]) / bandwidth
    return (masses[..., None, :] / bandwidth / _SQRT_2PI).log().sub(u * u / 2).logsumexp(-1)


def smoothed_derivative(
    x: Tensor, centers: Tensor, masses: Tensor, bandwidth: Tensor | float
) -> Tensor:
    """p' likewise."""
    u = (x[..., None] - centers[..., None, :]) / bandwidth
    weights = masses[..., None, :] / bandwidth**2 / _SQRT_2PI
    return -(weights * u * torch.exp(-u * u / 2)).sum(-1)


class HistogramDensity(SampleDensity):
    """A :class:`SampleDensity` of samples that were counted in bins, each at its bin's centre.

    The bandwidths are at least the widest filled bin, so that the bins do not show.

    Args:
        edges: (bins + 1,), increasing.
        counts: (bins,), how many samples lie in each; at least 100 in all, in at least two bins.

    Raises:
        ValueError: shapes that do not fit, edges that do not increase, counts that are negative or
            not finite, too few samples, or all in one bin. TypeError: no tensors, or complex ones.
    """

    def __init__(self, edges: Tensor, counts: Tensor) -> None:
        _refuse_unless_real("edges", edges)
        _refuse_unless_real("counts", counts)
        edges, counts = (tensor.detach().double().cpu() for tensor in (edges, counts))
        if edges.dim() != 1 or counts.shape != (len(edges) - 1,):
            shapes = f"{tuple(edges.shape)} and {tuple(counts.shape)}"
            raise ValueError(f"edges and counts have shapes {shapes}; allowed: (n + 1,) and (n,)")
        if not (edges.isfinite().all() and (edges.diff() > 0).all()):
            raise ValueError("edges are not finite and increasing, as they must be")
        if not (counts.isfinite().all() and (counts >= 0).all()):
            raise ValueError("counts has values that are negative or not finite")
        n = counts.sum().item()
        if n < FEWEST_SAMPLES:
            raise ValueError(f"counts has {n:g} samples; at least {FEWEST_SAMPLES} are needed")
        filled = counts > 0
        if filled.sum() < 2:
            raise ValueError("counts are all in one bin, which does not show the density's width")
        self.masses = counts[filled] / n
        self.centers = ((edges[1:] + edges[:-1]) / 2)[filled]
        mean = (self.masses * self.centers).sum()
        sigma = (self.masses * (self.centers - mean) ** 2).sum().sqrt().item()
        widest = edges.diff()[filled].max().item()
        self.bandwidth, self.derivative_bandwidth = (
            max(bandwidth, widest) for bandwidth in bandwidths(n, sigma)
        )


DensityLike = Distribution | SampleDensity


@dataclass(frozen=True)
class Density:
    """What the engine needs to know of a density; all in float64 on the CPU."""

    source: Any
    """The density as it was given, in float64."""
    location: float
    """The median, and the scale: the normal density's σ that has the same quartiles. Of samples
    these are their own, and to the scale the bandwidth is added, as deviations are."""
    scale: float
    lower: float
    """The support: of an unbounded one all but TAIL_MASS at each end."""
    upper: float

    def _just_inside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x, moved off the bounds, where torch's densities differ in what they say; and whether
        it was within them."""
        low, high = _bounds(self.source)
        inside = (x >= low) & (x <= high)
        margin = 1e-12 * self.scale
        return x.clamp(low + margin, high - margin).where(inside, self.location), inside

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), -inf beyond the bounds."""
        x, inside = self._just_inside(x)
        return self.source.log_prob(x).where(inside, -math.inf)

    def derivative(self, x: Tensor) -> Tensor:
        """p'(x), 0 beyond the bounds."""
        return self.log_prob_and_derivative(x)[1]

    def log_prob_and_derivative(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both, for little more than either alone."""
        x, inside = self._just_inside(x)
        if isinstance(self.source, SampleDensity):
            log_p, derivative = self.source.log_prob(x), self.source.derivative(x)
        else:
            with recorded(x) as x:
                log_p = self.source.log_prob(x)
                score = slope_of(log_p, x).detach()
            log_p = log_p.detach()
            derivative = (log_p.exp() * score).where(log_p > -math.inf, 0.0)
        return log_p.where(inside, -math.inf), derivative.where(inside, 0.0)


def _bounds(source: DensityLike) -> tuple[float, float]:
    """Where the support ends by definition; infinite where it does not."""
    if isinstance(source, SampleDensity):
        reach = _REACH * source.derivative_bandwidth
        return source.centers.min().item() - reach, source.centers.max().item() + reach
    support = getattr(source.support, "base_constraint", source.support)  # of a mixture's parts
    lower = torch.as_tensor(getattr(support, "lower_bound", -math.inf))
    upper = torch.as_tensor(getattr(support, "upper_bound", math.inf))
    return lower.min().item(), upper.max().item()


def as_density(density: DensityLike) -> Density:
    """The engine's view of a density.

    Raises:
        TypeError: no density. ValueError: one the engine cannot take.
    """
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device="cpu")
    if isinstance(density, SampleDensity):
        source: Any = density
        below = density.masses.cumsum(0)
        low, median, high = density.centers[torch.searchsorted(below, quartiles)].tolist()
        smoothing = density.bandwidth
    elif isinstance(density, Distribution):
        source, values = _copied_and_sampled(density)
        low, median, high = torch.quantile(values, quartiles).tolist()
        smoothing = 0.0
    else:
        given = type(density).__name__
        raise TypeError(
            f"density has type {given}; allowed are a torch.distributions.Distribution, a "
            "SampleDensity and a HistogramDensity"
        )
    scale = math.hypot((high - low) / 1.349, smoothing)
    if not (abs(median) <= LARGEST and 0 < scale <= LARGEST):
        raise ValueError(
            f"density has quartiles {low:g} and {high:g}; allowed are two that differ, up to "
            f"{LARGEST:g}"
        )
    try:
        return _with_support(Density(source, median, scale, -math.inf, math.inf))
    except (NotImplementedError, ValueError):
        raise ValueError(
            f"density has type {type(density).__name__}, and no log_prob at some points of what it "
            "calls its support; allowed are those that have one there, and a SampleDensity"
        ) from None


def _copied_and_sampled(density: Distribution) -> tuple[Distribution, Tensor]:
    """A distribution in float64, and samples: all can be sampled, few have quantiles."""
    if density.batch_shape or density.event_shape:
        shape = tuple(density.batch_shape + density.event_shape)
        raise ValueError(f"density has shape {shape}; allowed is one density of one variable")
    try:
        if density.support is not None and density.support.is_discrete:
            raise ValueError(f"density {density} is discrete: the output would have atoms")
        source = _in_double(density)
        with torch.random.fork_rng(devices=[]):  # the generator is put back
            torch.default_generator.manual_seed(0)  # the CPU's alone
            return source, source.sample((10_000,)).double()
    except NotImplementedError:
        given = type(density).__name__
        raise ValueError(
            f"density has type {given}, without support or samples; allowed are those with both"
        ) from None


def _with_support(density: Density) -> Density:
    """The same with its support, beyond which lies at most TAIL_MASS at each end."""
    low, high = _bounds(density.source)
    if isinstance(density.source, SampleDensity):
        return replace(density, lower=low, upper=high)
    start, end = (
        min(max(math.asinh((bound - density.location) / density.scale), -_FAR), _FAR)
        for bound in (low, high)
    )
    t = torch.linspace(start, end, 4097, dtype=torch.float64, device="cpu")
    x = density.location + density.scale * torch.sinh(t)
    x = x.clamp(low, high)
    mass = torch.cumulative_trapezoid(density.log_prob(x).exp(), x)
    first = int((mass > TAIL_MASS).nonzero()[:1].sum())
    last = int((mass < mass[-1] - TAIL_MASS).sum())
    lower = low if math.isfinite(low) and first == 0 else x[first].item()
    upper = high if math.isfinite(high) and last >= len(mass) - 1 else x[last + 1].item()
    return replace(density, lower=lower, upper=upper)


@torch.inference_mode(False)
def _in_double(thing: Any, copies: dict[int, Any] | None = None) -> Any:
    """A copy of a distribution or transform whose parameters are float64 on the CPU.

    Made by hand, as torch's own copy of an inverse transform loses what it inverts. Autograd takes
    it also where this one was made in inference mode.
    """
    copies = {} if copies is None else copies
    if isinstance(thing, Tensor):
        copy = thing.detach().clone().cpu()
        return copy.double() if thing.is_floating_point() else copy
    if isinstance(thing, list):
        return [_in_double(part, copies) for part in thing]
    if not isinstance(thing, Distribution | Transform):
        return thing
    if id(thing) not in copies:  # a transform and its inverse refer to each other
        double = copies[id(thing)] = object.__new__(type(thing))
        parts = {name: _in_double(part, copies) for name, part in vars(thing).items()}
        double.__dict__.update(parts)
        if isinstance(double, Distribution):  # torch.compile turns it off: then p is wrong beyond
            double._validate_args = True  # the support
    return copies[id(thing)]
