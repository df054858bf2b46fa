"""The output density of an activation that is not monotone: the sum over the preimages."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from crrelu_ext.eafo.activations import Function, jet
from crrelu_ext.eafo.cuts import between, solve
from crrelu_ext.eafo.densities import Density

NEGLIGIBLE = 1e-6
"""A branch may end in the tails with this part of the output density without a cut there."""


@dataclass(frozen=True)
class FoldedDensity:
    """q(z) = Σ p(x_j)/|f'(x_j)|, over the x_j with f(x_j) = z, one at most on each branch.

    Args:
        folds: where f' changes its sign, in order.
    """

    activation: Function
    density: Density
    folds: Tensor

    @functools.cached_property
    def ends(self) -> Tensor:
        """The points between which the branches lie, (branches + 1,)."""
        lower, upper = self.density.lower, self.density.upper
        return torch.tensor([lower, *self.folds.tolist(), upper], dtype=torch.float64)

    def at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q and q' at z = f(x), for (n,) points of the support."""
        z = self.activation(x)
        own = torch.bucketize(x, self.folds)
        q, dq = torch.zeros_like(x), torch.zeros_like(x)
        for branch in range(len(self.ends) - 1):
            member = own == branch
            elsewhere, found = self._preimage(branch, z[~member])
            y = x.clone()
            y[~member] = elsewhere
            member[~member] = found
            density, slope = self._term(y[member])
            q[member] += density
            dq[member] += slope
        return q, dq

    def _term(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """p/|f'| and its derivative by z."""
        f = jet(self.activation, x)
        # Nearer to a fold f is not resolved in float64; the integrals give such points no weight.
        first = f.first.where(f.first.abs() > self._smallest_slope, self._smallest_slope)
        p = self.density.log_prob(x).exp()
        correction = self.density.derivative(x) - p * f.second / first
        return p / first.abs(), correction / (first.abs() * first)

    @functools.cached_property
    def _tables(self) -> list[tuple[Tensor, Tensor]]:
        """Points of each branch and f there, in the order of f."""
        points = [between(self.density, low, high) for low, high in pairwise(self.ends.tolist())]
        tables = [(x, self.activation(x)) for x in points]
        return [(x, f) if f[0] < f[-1] else (x.flip(0), f.flip(0)) for x, f in tables]

    @functools.cached_property
    def _smallest_slope(self) -> float:
        return 1e-9 * max((f.diff() / x.diff()).abs().max().item() for x, f in self._tables)

    def _preimage(self, branch: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """Where f = z on a branch, and whether it is anywhere."""
        x, f = self._tables[branch]
        found = (f[0] < z) & (z < f[-1])
        above = torch.searchsorted(f, z[found])  # f[above - 1] < z <= f[above]
        y = torch.full_like(z, math.nan)
        y[found] = solve(self.activation, z[found], x[above - 1], x[above])
        return y, found

    def crossings(self, cuts: Tensor) -> Tensor:
        """Where the folded density is not smooth because of what another branch has at that value.

        That is a fold or a kink, the cuts given, or its end in a tail, unless its part of the
        density is negligible there. As x goes to -inf, GELU under a normal density comes to 0 with
        a density that falls off like 1/|x|: so slowly that (log q)' has a pole at z = 0.
        """
        points = torch.cat([self.ends[[0, -1]], cuts])
        in_tail = torch.arange(len(points)) < 2
        z, density = self.activation(points), self._term(points)[0]
        places = [self.ends[:0]]
        for branch, (low, high) in enumerate(pairwise(self.ends)):
            y, found = self._preimage(branch, z)
            here = self._term(y.where(found, points))[0]
            matters = ~in_tail | (density > NEGLIGIBLE * here)
            places.append(y[found & matters & ((points < low) | (points > high))])
        return torch.cat(places)
