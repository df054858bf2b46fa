"""The output density of an activation that is not monotone: the sum over the preimages."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from crrelu_ext.eafo.activations import jet
from crrelu_ext.eafo.cuts import between, solve
from crrelu_ext.eafo.densities import Density
from crrelu_ext.elementwise import Function, value_of

NEGLIGIBLE = 1e-6
"""A branch may end in a tail with this part of the output density without a cut there."""
NEAR = 1e-3
"""The end is where f has so much of the branch's range to go: samples stop soon after."""


@dataclass(frozen=True)
class FoldedDensity:
    """q(z) = Σ p(x_j)/|f'(x_j)|, over the x_j with f(x_j) = z, one at most on each branch.

    Args:
        cuts: the points between which f and p are smooth.
        folds: those of the cuts where f' changes its sign, in order.
    """

    activation: Function
    density: Density
    cuts: Tensor
    folds: Tensor

    @functools.cached_property
    def ends(self) -> Tensor:
        """The points between which the branches lie, (branches + 1,)."""
        lower, upper = self.density.lower, self.density.upper
        return torch.tensor([lower, *self.folds.tolist(), upper], dtype=torch.float64, device="cpu")

    def at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q and q' at z = f(x), for (n,) points of the support."""
        own = torch.arange(len(self.folds) + 1, device="cpu")[:, None] == torch.bucketize(
            x, self.folds
        )
        y = torch.where(own, x, self._preimages(self._values(x), ~own))
        found = ~y.isnan()
        terms = self._term(y[found])
        q, dq = (torch.zeros_like(y).masked_scatter(found, term).sum(0) for term in terms)
        return q, dq

    def _values(self, x: Tensor) -> Tensor:
        return value_of(self.activation, x)

    def _term(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """p/|f'| and its derivative by z."""
        f = jet(self.activation, x)
        # Nearer to a fold f is not resolved in float64; the integrals give such points no weight.
        # In a tail f' may be as small, and is right.
        near = ((x[:, None] - self.folds).abs() < 1e-9 * self.density.scale).any(-1)
        unresolved = near & (f.first.abs() < self._smallest_slope)
        first = f.first.where(~unresolved, self._smallest_slope)
        log_p, dp = self.density.log_prob_and_derivative(x)
        p = log_p.exp()
        correction = dp - p * f.second / first
        return p / first.abs(), correction / (first.abs() * first)

    @functools.cached_property
    def _tables(self) -> list[tuple[Tensor, Tensor]]:
        """Points of each branch and f there, in the order of f.

        They are many near folds, where f is flat, and the cuts are among them, so that f is smooth
        from one to the next.
        """
        tables = []
        for low, high in pairwise(self.ends.tolist()):
            own = self.cuts[(low < self.cuts) & (self.cuts < high)]
            x = torch.cat([between(self.density, low, high, crowded=True), own]).sort()[0]
            f = self._values(x)
            tables.append((x, f) if f[0] < f[-1] else (x.flip(0), f.flip(0)))
        return tables

    @functools.cached_property
    def _smallest_slope(self) -> float:
        return 1e-9 * max((f.diff() / x.diff()).abs().max().item() for x, f in self._tables)

    def _preimages(self, z: Tensor, wanted: Tensor) -> Tensor:
        """Where f = z on each branch, (branches, n); NaN where nowhere, or not wanted."""
        y = torch.full(wanted.shape, math.nan, dtype=torch.float64, device="cpu")
        lower, upper = y.clone(), y.clone()
        for row, (x, f) in enumerate(self._tables):
            found = wanted[row] & (f[0] < z) & (z < f[-1])
            above = torch.searchsorted(f, z[found])  # f[above - 1] < z <= f[above]
            lower[row, found], upper[row, found] = x[above - 1], x[above]
        found = ~lower.isnan()
        target = z.expand_as(y)[found]
        y[found] = solve(self._values, target, lower[found], upper[found])
        return y

    def crossings(self) -> Tensor:
        """Where the folded density is not smooth because of what another branch has at that value.

        That is one of the cuts, a fold or a kink, or its end in a tail, unless its part of the
        density is negligible there. As x goes to -inf, GELU under a normal density comes to 0 with
        a density that falls off like 1/|x|: so slowly that (log q)' has a pole at z = 0.
        """
        points = torch.cat([self.ends[[0, -1]], self.cuts])
        low, high = self.ends[:-1, None], self.ends[1:, None]
        y = self._preimages(self._values(points), (points < low) | (points > high))
        found = ~y.isnan()
        here = torch.zeros_like(y).masked_scatter(found, self._term(y[found])[0])
        tails = [self._largest_near(self._tables[row], points[row]) for row in (0, -1)]
        parts = torch.cat([torch.stack(tails), torch.full_like(self.cuts, math.inf)])
        return y[found & (parts > NEGLIGIBLE * here)]

    def _largest_near(self, table: tuple[Tensor, Tensor], end: Tensor) -> Tensor:
        """The most of the density that a branch has where f is near its value at an end."""
        x, f = table
        at_end = f[(x - end).abs().argmin()]
        return self._term(x[(f - at_end).abs() < NEAR * (f[-1] - f[0])])[0].max()
