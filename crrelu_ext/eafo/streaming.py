"""EAFO on the histograms of a network's layers, all at once: the core of dynamic EAFO.

Each layer has a function, by its values on a grid of eight scales on both sides of the location,
and a histogram of its input, in bins of a sixteenth of the scale. Everything is float64 on the CPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crrelu_ext.dynamic import ABOVE, BELOW, BINS, BINS_PER_SCALE, NOT_FINITE, REACH
from crrelu_ext.eafo.densities import (
    FEWEST_SAMPLES,
    bandwidths,
    smoothed_log_prob,
)
from crrelu_ext.eafo.grid import Grid, Problems
from crrelu_ext.eafo.span import FLOOR, Span
from crrelu_ext.placing import CENTERS, NARROWEST, OUTSIDE, Measured, bounded, moments

KNOTS = 257
FUNCTIONS = 8
"""Steps are sums of so many Hermite functions."""
_END = math.asinh(REACH)
_WIDTHS_PER_OCTAVE = 8
"""Bandwidths are rounded to these, so that layers and updates share their kernels."""
DRIFT = 0.25
"""In scales: how far the mean may be from the location, and the spread from the scale."""
OUTGROWN = 12.0
"""A scale that has grown by so much leaves too few knots where the function bends."""


@dataclass(frozen=True)
class Outcome:
    """What one update did, of each layer; entropies in nats, NaN of too few samples."""

    entropy_before: Tensor
    entropy_after: Tensor
    step_size: Tensor
    """C, in f + C D; 0 where it was refused."""
    refusals: list[str | None]


class Streams(Measured):
    """The layers' functions and histograms.

    Args:
        starts: their functions at the start, of float64 tensors and the scale of these; increasing.
    """

    def __init__(self, starts: Sequence[Callable[[Tensor, Tensor], Tensor]]) -> None:
        layers = len(starts)
        super().__init__(layers)
        self.starts = list(starts)
        self.masses = torch.zeros(layers, BINS, dtype=torch.float64, device="cpu")
        self.outside = torch.zeros(layers, dtype=torch.float64, device="cpu")
        # Of the counts absorbed last: were there none; did they not vary?
        self.unseen, self.still = torch.zeros(2, layers, dtype=torch.bool, device="cpu")
        # Functions that a trained model came with, which calibrating leaves as they are.
        self.trained = torch.zeros(layers, dtype=torch.bool, device="cpu")
        self.values = self._beginnings()
        self.first_values = self.values.clone()
        self.narrowest = self.scale.clone()
        """The smallest scale since the function was begun, or begun anew."""

    def _beginnings(self) -> Tensor:
        """The values of the starting functions."""
        layers = zip(self.starts, self._grid().x, self.scale, strict=True)
        return torch.stack([f(x, scale).detach() for f, x, scale in layers])

    def _begin(self, which: Tensor, values: Tensor) -> None:
        self.values = values.where(which[:, None], self.values)
        self.first_values = values.where(which[:, None], self.first_values)
        self.narrowest = self.scale.where(which, self.narrowest)

    def take_over(self, layer: int, place: Tensor, function: Callable[[Tensor], Tensor]) -> None:
        """Begins with what a trained layer has: location and scale, and its function."""
        self.location[layer], self.scale[layer] = place
        self.narrowest[layer] = self.scale[layer]
        self.values[layer] = self.first_values[layer] = function(self._grid().x[layer])
        self.trained[layer] = True

    def _grid(self) -> Grid:
        ends = torch.tensor([[-_END, _END]], dtype=torch.float64, device="cpu")
        return Grid(self.location, self.scale, ends.expand(len(self.starts), 2), KNOTS)

    def absorb(self, counts: Tensor, keep: float) -> None:
        """Adds counts, (layers, bins + 3), to what is kept of the old ones."""
        counts = counts.double()
        masses, outside = counts[:, 1:ABOVE], counts[:, BELOW] + counts[:, ABOVE]
        inside = masses.sum(-1)
        self.unseen = inside + outside == 0
        self.still = (inside >= FEWEST_SAMPLES) & (outside == 0) & _does_not_vary(masses)
        # A pause adds nothing to what is known; nor does one that came before all else stay.
        had = self.masses.sum(-1)
        held = self.still & (had > 0)
        part = keep * ~(_does_not_vary(self.masses) & (had >= FEWEST_SAMPLES))
        self.masses = self.masses.where(held[:, None], part[:, None] * self.masses + masses)
        self.outside = self.outside.where(held, part * self.outside + outside)
        self.not_finite = self.not_finite + counts[:, NOT_FINITE]

    def calibrate(self) -> None:
        """Lays grid and bins where the input is, and begins there with the starting functions."""
        self._follow(0.0, ~self.unseen)
        self._begin(~self.trained, self._beginnings())
        self.masses, self.outside = torch.zeros_like(self.masses), torch.zeros_like(self.outside)

    def _follow(self, drift: float, which: Tensor) -> Tensor:
        """Moves grids and bins to where the input has gone, and their contents with them.

        Returns:
            Of each layer, whether it has begun anew, as its scale has outgrown the function.
        """
        mean, variance = moments(self.masses)
        inside = self.masses.sum(-1)
        beyond = self.outside > OUTSIDE * (inside + self.outside)
        factor = variance.sqrt().clamp(min=NARROWEST).where(~beyond, 8.0)
        shift = mean.where(inside > 0, 0.0)
        far = beyond | (shift.abs() > drift) | (factor.log().abs() > math.log1p(drift))
        far &= which & (inside + self.outside >= FEWEST_SAMPLES)
        if not far.any():
            return far
        old = self._grid()
        location = self.location + (self.scale * shift).where(far, 0.0)
        scale = bounded(location, self.scale * factor).where(far, self.scale)
        positions = ((self.location - location) / scale)[:, None] + CENTERS * (self.scale / scale)[
            :, None
        ]
        moved = torch.stack(list(map(_rebinned, self.masses, positions)))
        self.outside = (self.outside + (inside - moved.sum(-1))).where(~beyond, 0.0)
        self.masses = moved
        new = Grid(location, scale, old.ends, KNOTS)
        s = (new.x - self.location[:, None]) / self.scale[:, None]
        self.values, self.first_values = (
            self._carried(old.spline(values), s).where(far[:, None], values)
            for values in (self.values, self.first_values)
        )
        self.location, self.scale = location, scale
        self.narrowest = self.narrowest.minimum(scale)
        outgrown = scale > OUTGROWN * self.narrowest
        if not outgrown.any():
            return outgrown
        beginnings = self._beginnings()
        outgrown &= beginnings.isfinite().all(-1)  # else it stays as it was carried
        self._begin(outgrown, beginnings)
        return outgrown

    def _carried(self, spline: Callable[..., np.ndarray], s: Tensor) -> Tensor:
        """The splines' values at s, beyond reach along the tangents."""
        values, slopes = self._evaluate(spline, s)
        return values + slopes * (s - s.clamp(-REACH, REACH)) * self.scale[:, None]

    def _evaluate(self, spline: Callable[..., np.ndarray], s: Tensor) -> tuple[Tensor, Tensor]:
        """The splines' values and slopes in x at the nearest places within reach.

        Args:
            s: (layers, n), or (1, n) if the same for all; in scales from the location.
        """
        t = torch.asinh(s.clamp(-REACH, REACH))
        number = ((t / _END + 1) / 2 * (KNOTS - 1)).numpy()
        parts = []
        for order in range(2):
            if len(number) == 1:
                parts.append(torch.from_numpy(spline(number[0], order))[:, :, 0].T)
            else:
                rows = [spline(row, order)[:, i, 0] for i, row in enumerate(number)]
                parts.append(torch.from_numpy(np.stack(rows)))
        per_number = (KNOTS - 1) / (2 * _END) / (self.scale[:, None] * torch.cosh(t))
        return parts[0], parts[1] * per_number

    def tables(self, knots: int) -> Tensor:
        """The functions between eight scales on both sides, (layers, 3, knots)."""
        s = torch.linspace(-REACH, REACH, knots, dtype=torch.float64, device="cpu")[None]
        values, slopes = self._evaluate(self._grid().spline(self.values), s)
        return torch.stack([self.location[:, None] + self.scale[:, None] * s, values, slopes], 1)

    def update(self, *, trust: float, step_size: float | None = None) -> Outcome:
        """A step down for every layer that the theory does not refuse.

        Args:
            trust: the largest |Δf|, in scales.
            step_size: the largest C.
        """
        anew = self._follow(DRIFT, ~(self.unseen | self.still))
        problems, floor = self._problems()
        span = Span(problems, FUNCTIONS)
        reach = trust * self.scale
        size = reach / span.largest(span.downwards)
        if step_size is not None:
            size = size.clamp(max=step_size)
        step, part = self._step(span, size[:, None] * span.downwards, floor, reach)
        moved = problems.moved(span.jet(step), part)
        least = torch.minimum(problems.f.first, moved.f.first).amin(-1)
        samples = self.masses.sum(-1)
        before, after = problems.entropy(), moved.entropy()
        reasons = {
            "nothing was counted": self.unseen,
            f"fewer than {FEWEST_SAMPLES} samples": samples < FEWEST_SAMPLES,
            "too much of the input beyond the histogram": self.outside
            > OUTSIDE * (samples + self.outside),
            "the input does not vary": self.still | _does_not_vary(self.masses),
            "the input has outgrown the function, which begins anew": anew,
            "the function is not increasing": ~(least > 0),
            "the functions are not told apart": ~span.resolved,
            "the measured entropy does not fall": ~(after < before),
        }
        before = before.where(samples >= FEWEST_SAMPLES, torch.nan)
        falls = ~torch.stack(list(reasons.values())).any(0)
        self.values = moved.f.value.where(falls[:, None], self.values)
        refusals = [
            next((reason for reason, layers in reasons.items() if layers[i]), None)
            for i in range(len(self.starts))
        ]
        size = (part * size).where(falls, 0.0)
        return Outcome(before, after.where(falls, before), size, refusals)

    def _step(
        self, span: Span, wanted: Tensor, floor: Tensor, reach: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The nearest steps that keep the slopes up, and the parts of these that are in reach."""
        step = span.nearest(wanted, floor)
        return step, (reach / span.largest(step)).clamp(max=1.0)

    def _problems(self) -> tuple[Problems, Tensor]:
        """The functions under the densities; and the least slopes, (layers, knots)."""
        grid = self._grid()
        f, first = (grid.jet(grid.spline(v)) for v in (self.values, self.first_values))
        return Problems(grid, self._log_density(), f), FLOOR * first.first

    def _log_density(self) -> Tensor:
        """log p at the knots, with about the engine's bandwidths, at least a bin."""
        samples = self.masses.sum(-1, keepdim=True).clamp(min=1)
        _, variance = moments(self.masses)
        width, _ = bandwidths(samples[:, 0], variance.sqrt())
        keys = (width.clamp(min=1 / BINS_PER_SCALE).log2() * _WIDTHS_PER_OCTAVE).round().long()
        p = torch.empty(len(keys), KNOTS, dtype=torch.float64, device="cpu")
        for key in keys.unique():
            same = keys == key
            p[same] = (self.masses / samples)[same] @ _kernels(int(key))
        return (p / self.scale[:, None]).log()


@functools.lru_cache(maxsize=64)
def _kernels(width: int) -> Tensor:
    """What makes p at the knots of the masses in the bins: (bins, knots)."""
    t = torch.linspace(-_END, _END, KNOTS, dtype=torch.float64, device="cpu")
    s = torch.sinh(t)[:, None, None]
    each, one = CENTERS[:, None], torch.ones(1, dtype=torch.float64, device="cpu")
    return smoothed_log_prob(s, each, one, 2 ** (width / _WIDTHS_PER_OCTAVE))[..., 0].exp().T


def _does_not_vary(masses: Tensor) -> Tensor:
    """Whether the spread is below that of a bin."""
    return moments(masses)[1] < BINS_PER_SCALE**-2


def _rebinned(masses: Tensor, positions: Tensor) -> Tensor:
    """Masses at new places, in scales: each shared by the two nearest bins; lost if beyond."""
    place = (positions + REACH) * BINS_PER_SCALE - 0.5
    left = place.floor()
    part = place - left
    # One more on both sides for what is lost.
    bins = torch.zeros(BINS + 2, dtype=torch.float64, device="cpu")
    index = left.clamp(-1, BINS).long() + 1
    bins.index_add_(0, index, masses * (1 - part))
    bins.index_add_(0, (index + 1).clamp(max=BINS + 1), masses * part)
    return bins[1:-1]
