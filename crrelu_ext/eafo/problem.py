"""One activation under one density, analysed: the pieces, the entropy, the direction of descent.

It brings the callables to the core's grids, and refuses what has no answer.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.interpolate import BSpline
from torch import Tensor

from crrelu_ext.eafo.activations import jet
from crrelu_ext.eafo.cuts import (
    activation_jumps,
    between,
    density_jumps,
    find_folds,
    where_not_flat,
)
from crrelu_ext.eafo.densities import Density, DensityLike, as_density
from crrelu_ext.eafo.folded import FoldedDensity
from crrelu_ext.eafo.grid import Grid, Jet, Problems
from crrelu_ext.elementwise import Function, refuse_unless_elementwise

FEWEST_KNOTS = 513
"""Of each piece. Heavy tails get more, so that they are at most 1/80 apart in t."""
REFINEMENTS = 2
"""How often there may be four times as many, where the entropy is not resolved."""
STRIDE = 4
"""Corrections are splines through every fourth knot."""
RESOLVED = 1e-5
"""The largest error of an entropy, in nats, that is not refused."""
JUMP = 1e-6
"""The largest jump of D, relative to the largest |D|, that is not refused; likewise of f."""
ROUNDING = 1e-9
"""The part of its two terms below which D, their sum, may be rounding."""


def make_grid(density: Density, cuts: Tensor, knots: int | None = None, **options: Any) -> Grid:
    """A grid of the density's support in pieces, between sorted cuts inside it."""
    location, scale = (
        torch.tensor([number], dtype=torch.float64, device="cpu")
        for number in (density.location, density.scale)
    )
    ends = torch.cat([cuts.new_tensor([density.lower]), cuts, cuts.new_tensor([density.upper])])
    t = torch.asinh((ends - location) / scale)
    if knots is None:
        intervals = max(FEWEST_KNOTS - 1, math.ceil(80 * t.diff().max().item()))
        knots = STRIDE * math.ceil(intervals / STRIDE) + 1
    return Grid(location, scale, t[None], knots, **options)


def inside(grid: Grid) -> Tensor:
    """A one-problem grid's knots, (knots,), with those at a piece's ends moved inwards a little.

    There the functions have their limits from inside the piece.
    """
    x = grid.x[0].unflatten(-1, (grid.pieces, grid.knots)).clone()
    x[:, 0] += 1e-15 * (x[:, 0].abs() + grid.scale)
    x[:, -1] -= 1e-15 * (x[:, -1].abs() + grid.scale)
    return x.flatten()


@dataclass(frozen=True)
class Problem:
    """An activation under a density.

    Args:
        cuts: all points between which both are smooth and f' keeps its sign, in order.
        folds: those of the cuts where f' changes its sign.
        knots: of each piece; None for as many as are needed.
    """

    activation: Function
    density: Density
    cuts: Tensor
    folds: Tensor
    knots: int | None = None

    @property
    def monotone(self) -> bool:
        return not len(self.folds)

    @functools.cached_property
    def grid(self) -> Grid:
        return make_grid(self.density, self.cuts, self.knots, stride=STRIDE)

    @functools.cached_property
    def core(self) -> Problems:
        return self._on(self.grid)

    def _on(self, grid: Grid) -> Problems:
        x = inside(grid)
        f = jet(self.activation, x)
        rows = Jet(f.value[None], f.first[None], f.second[None])
        return Problems(grid, self.density.log_prob(x)[None], rows)

    @functools.cached_property
    def folded(self) -> FoldedDensity:
        return FoldedDensity(self.activation, self.density, self.cuts, self.folds)

    @functools.cached_property
    def _graded(self) -> tuple[Problems, Tensor, Tensor]:
        """The problem on a grid that can integrate up to folds, and q and q' there."""
        core = self._on(make_grid(self.density, self.cuts, self.knots, graded=True))
        q, dq = self.folded.at(inside(core.grid))
        return core, q, dq

    @functools.cached_property
    def _entropy_terms(self) -> tuple[Problems, Tensor]:
        """-p log q(f(x)), on the grid that integrates it."""
        if self.monotone:
            return self.core, self.core.entropy_terms()
        core, q, _ = self._graded
        return core, -core.p * q.log()

    @functools.cached_property
    def entropy(self) -> float:
        """H(f), in nats."""
        core, terms = self._entropy_terms
        return core.grid.integral(terms).item()

    @functools.cached_property
    def missing_mass(self) -> float:
        """1 less the integral of p: what the tails hold that were cut off, and integration lost."""
        core, _ = self._entropy_terms
        return 1 - core.grid.integral(core.p).item()

    @functools.cached_property
    def error(self) -> float:
        """An estimate of the entropy's error: from half the knots, and from the missing mass."""
        core, terms = self._entropy_terms
        coarse = core.grid.coarser().integral(core.grid.every_second(terms)).item()
        log_q_at_ends = (terms[0, [0, -1]] / core.p[0, [0, -1]]).abs().max().item()
        return abs(self.entropy - coarse) + abs(self.missing_mass) * (1 + log_q_at_ends)

    @functools.cached_property
    def variance(self) -> float:
        """Of the output; infinite if what was cut off may hold a thousandth of it."""
        core, _ = self._entropy_terms
        mean, variance = (moment.item() for moment in core.mean_and_variance())
        furthest = (core.f.value - mean).abs().max().item()
        return variance if abs(self.missing_mass) * furthest**2 < 1e-3 * variance else math.inf

    def refuse_unresolved(self) -> None:
        """Raises a ValueError if f is not what f' says, or if the entropy's error is too large."""
        self._refuse_jumps_of_f()
        if not self.error <= RESOLVED:
            raise ValueError(
                f"the entropy, {self.entropy:.6g}, is not known better than to {self.error:.2g} "
                f"(allowed is {RESOLVED}): {self.missing_mass:.2g} of the probability was cut off "
                "or lost, the rest is the change from half as many knots. Smooth the density or "
                "the activation, or take a density with lighter tails"
            )
        if not self.resolved:
            (x,) = self._by_pieces(self.grid.x)
            place = x[:, :-1].flatten()[self._steps.argmax()].item()
            raise ValueError(
                f"activation has a step beside x = {place:.6g} that its slope at the knots does "
                "not show: too steep, or a small jump. Smooth it"
            )

    def _by_pieces(self, *values: Tensor) -> list[Tensor]:
        """Of values at the knots those of each piece, (pieces, knots of a piece)."""
        return [part[0].unflatten(-1, (self.grid.pieces, self.grid.knots)) for part in values]

    def _refuse_jumps_of_f(self) -> None:
        """Where f jumps, it does so along its slope, and turns nowhere."""
        f, sign = self._by_pieces(self.core.f.value, self.core.f.first.sign())
        jumps = f[1:, 0] - f[:-1, -1]
        # Where f turns as well, another branch may have no place for a value in the gap.
        along = jumps * sign[1:, 0] if self.monotone else -jumps.abs()
        size = f.abs().max()
        if (f.diff() * sign[:, :-1] < -1e-9 * size).any() or (along < -JUMP * size).any():
            raise ValueError(
                "activation jumps against its slope, or jumps and turns elsewhere; allowed are "
                "continuous functions"
            )

    @functools.cached_property
    def _steps(self) -> Tensor:
        """What steps of f between two knots may add to the entropy, (pieces, intervals).

        By Jensen's inequality E[log |f'|] is at most the logarithm of the mean slope.
        """
        f = self.core.f
        value, first, second, p, x = self._by_pieces(
            f.value, f.first, f.second, self.core.p, self.grid.x
        )
        width, size = x.diff(), value.abs().max()
        expected = width / 2 * (first[:, 1:] + first[:, :-1]) - width**2 / 12 * second.diff()
        surplus = ((value.diff() - expected).abs() - 1e-14 * size).clamp(min=0)  # of rounding
        changes = width / 2 * (p[:, 1:] + p[:, :-1]) * (surplus / expected.abs()).log1p()
        return changes.nan_to_num(0.0)  # 0/0 where f' is 0

    @property
    def resolved(self) -> bool:
        """Whether the entropy is known, and f between the knots what f' says there."""
        return self.error <= RESOLVED and self._steps.sum().item() <= RESOLVED

    def direction(self, scale_free: bool = False) -> BSpline:
        """D, the direction in which H, or H - ½ log var, falls: a spline on the grid.

        Raises:
            ValueError: it jumps, or diverges, or is not resolved.
        """
        core, end_curvature = self.core, None
        if self.monotone:
            _, dp = self.density.log_prob_and_derivative(inside(self.grid)[None])
            values = core.scale_free_correction(dp) if scale_free else core.correction(dp)
            rounding = ROUNDING * (dp.abs() + core.p * (core.f.second / core.f.first).abs())
        else:
            values, end_curvature = self._folded_direction(scale_free)
            rounding = torch.zeros_like(values)
        largest = values.abs().max()
        self._refuse_jumps(values, JUMP * largest + rounding.max())
        if self.monotone:
            self._refuse_divergence(values.where(values.abs() > rounding, 0.0))
        spline = self.grid.spline(values, end_curvature)
        lost = (self.grid.jet(spline).value - values).abs().max()
        if not lost <= 1e-3 * largest + rounding.max():
            raise ValueError(
                f"D is not resolved: its spline misses it by {lost:.2g}, and its size is "
                f"{largest:.2g}. f' comes near 0, or f or p has details too fine: smooth them"
            )
        return spline

    def _refuse_jumps(self, values: Tensor, allowed: Tensor) -> None:
        """D is continuous at the cuts, and zero where the density ends with a jump."""
        limits = values[0].unflatten(-1, (self.grid.pieces, self.grid.knots))
        p = self.core.p[0, [0, -1]]
        beyond = values[0, [0, -1]].where(p < JUMP * self.core.p.max(), 0.0)
        left = torch.cat([beyond[:1], limits[:, -1]])
        right = torch.cat([limits[:, 0], beyond[1:]])
        jumps = ((left - right).abs() > allowed).nonzero().flatten().tolist()
        if jumps:
            i = jumps[0]
            place = [self.density.lower, *self.cuts.tolist(), self.density.upper][i]
            raise ValueError(
                f"D jumps at x = {place:.6g}, from {left[i]:.6g} to {right[i]:.6g}, as the density "
                "jumps there, or its slope, or that of the activation; f + C D would jump too. "
                "Smooth what jumps, or take another density"
            )

    def _refuse_divergence(self, values: Tensor) -> None:
        """eta = -D/f' does not grow towards the ends of the support."""
        eta = (values / self.core.f.first)[0].abs()
        t = self.grid.t[0]
        for end, inward in ((0, 0.05), (-1, 0.95)):
            near = int((t < t[0] + inward * (t[-1] - t[0])).sum())
            if eta[end] > 1.05 * eta[near] and eta[end] > JUMP * eta.max():
                raise ValueError(
                    f"eta diverges at the bounds, as far as the support goes: |D/f'| has grown to "
                    f"{eta[end]:.4g} at x = {self.grid.x[0, end]:.6g}, as f saturates faster than "
                    "the density falls off. Take a density that is narrower"
                )

    @functools.cached_property
    def _rough(self) -> Tensor:
        """Of the cuts those that are no smooth folds: (cuts,), bool."""
        slopes = jet(self.activation, self.cuts).first.abs()
        return slopes > 1e-6 * self.core.f.first.abs().max()

    def _taper(self, x: Tensor) -> Tensor:
        """A factor that vanishes, like |f'|⁴ at a fold, where q is not smooth for another reason.

        That is at a kink, and at a point that shares its value with a fold or a limit in a tail.
        """
        u = 2 * (x[..., None] - self.cuts[self._rough]) / self.density.scale
        return ((1 - torch.exp(-u * u)) ** 2).prod(-1)

    def _weight_and_descent(
        self, core: Problems, q: Tensor, dq: Tensor, scale_free: bool
    ) -> tuple[Tensor, Tensor]:
        """w = |f'|⁴ p, tapered; and what descends with any weight, (log q)' or the scale-free."""
        descent = dq / q
        if scale_free:
            mean, variance = self.core.mean_and_variance()
            descent = descent + (core.f.value - mean) / variance
        return core.f.first**4 * core.p * self._taper(core.grid.x), descent

    def _folded_direction(self, scale_free: bool) -> tuple[Tensor, Tensor]:
        """D at the knots and its second derivatives at the pieces' ends; it has no slope there."""
        q, dq = self.folded.at(inside(self.grid))
        weight, descent = self._weight_and_descent(self.core, q, dq, scale_free)
        values = (weight * descent).unflatten(-1, (self.grid.pieces, self.grid.knots))
        values[:, 1:, 0] = values[:, :-1, -1] = 0.0
        # At a fold q ~ |z - z0|^(-1/2) and z - z0 ~ f'' (x - x0)²/2, so D ~ -f''³ p (x - x0)².
        second = jet(self.activation, self.cuts).second
        curvature = -2 * second**3 * self.density.log_prob(self.cuts).exp() * self._taper(self.cuts)
        curvature = curvature.where(~self._rough, 0.0)
        zero = curvature.new_zeros(1)
        ends = torch.stack([torch.cat([zero, curvature]), torch.cat([curvature, zero])])
        return values.flatten(-2), ends[:, None]

    def slope(self, direction: Jet, scale_free: bool = False) -> float:
        """The derivative by C, at C = 0, of H(f + C D), or of H - ½ log var."""
        if not self.monotone:
            core, q, dq = self._graded
            weight, descent = self._weight_and_descent(core, q, dq, scale_free)
            return -core.grid.integral((weight * descent**2 * core.p).nan_to_num(0.0)).item()
        slope = self.core.slope(direction).item()
        if scale_free:
            mean, variance = self.core.mean_and_variance()
            drift = self.core.p * (self.core.f.value - mean) / variance * direction.value
            slope -= self.grid.integral(drift).item()
        return slope

    def bound(self, direction: Jet) -> float:
        """The C up to which the sign of f' changes nowhere where it did not."""
        ratio = direction.first / self.core.f.first
        if not self.monotone:  # at a fold it is 0/0, and has the limit D''/f''
            at_fold = self.core.f.first.abs() < 1e-9 * self.core.f.first.abs().max()
            ratio = ratio.where(~at_fold, direction.second / self.core.f.second)
        return 1 / (-ratio).max().clamp(min=0).item() if (ratio < 0).any() else math.inf


def analyse(activation: Function, density: DensityLike) -> Problem:
    """The problem of an activation and a density, cut into pieces.

    Raises:
        TypeError, ValueError: what is said of densities and activations; or the entropy cannot be
            computed to 1e-5.
    """
    view = as_density(density)
    x = between(view, view.lower, view.upper)
    refuse_unless_elementwise(activation, x)
    f = jet(activation, x)
    moving = where_not_flat(view, x, f)
    if moving != view:
        view = moving
        x = between(view, view.lower, view.upper)
        f = jet(activation, x)
    jumps = torch.cat([density_jumps(view, x), activation_jumps(activation, view, x, f)])
    jumps = _apart(jumps, 1e-9 * view.scale)
    folds = find_folds(activation, x, f, jumps)
    cuts = torch.cat([jumps, folds]).unique()
    problem = Problem(activation, view, cuts, folds)
    if not problem.monotone:
        crossings = problem.folded.crossings()
        far = ((crossings[:, None] - cuts).abs() > 1e-6 * view.scale).all(-1)
        cuts = torch.cat([cuts, _apart(crossings[far], 1e-6 * view.scale)]).sort()[0]
        problem = replace(problem, cuts=cuts)
    for _ in range(REFINEMENTS):
        if not problem.resolved:
            problem = replace(problem, knots=4 * problem.grid.knots - 3)
    problem.refuse_unresolved()
    return problem


def _apart(points: Tensor, distance: float) -> Tensor:
    """The points in order; of those that are nearer to one another than a distance, the first."""
    points = points.sort()[0]
    return points[points.diff(prepend=points[:1] - 2 * distance) > distance]
