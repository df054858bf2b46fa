"""The step of EAFO among a few smooth functions, with which a descent can go on.

f + C D is a step of a heat equation backwards, since D = p' - p f''/f': each adds detail to f'',
which the next one sharpens, until D is not resolved. Here D is projected on

    ψ_k(x) = He_k(u) exp(-u²/2) / √k!,   u = (x - location)/scale,   k = 0, 1, ..., n - 1,

the Hermite functions that hold D whole where f is a line and p a normal density times a polynomial
of degree n - 2 (a Gram-Charlier series); ψ_1 is CRReLU's bump. The projection is that of the metric
⟨g, h⟩ = ∫ g h/|f'| dx, in which D is the direction of steepest descent. It needs no derivative of
p, and no f'': ⟨ψ, D⟩ = -dH(f + C ψ)/dC = -E[ψ'/f'].

The other way for a descent to end is that f' goes to 0 somewhere: where a step would bring it below
a floor, the nearest one is taken that does not.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.polynomial import hermite_e
from scipy.optimize import nnls
from torch import Tensor

from crrelu_ext.eafo.grid import Grid, Jet, Problems

MOST = 16
"""Functions; the engine's splines are made for details as fine as theirs."""
FLOOR = 0.2
"""The part of the slope at the start that f' keeps, at every knot."""
LONGEST = 1e3
"""In scales times the largest slope: longer steps are cut to this, before what the floor leaves of
them is rounding."""
NEGLIGIBLE = 1e-6
"""The part of its terms below which a slope may be rounding, or due to the tails cut off."""


def hermite(grid: Grid, functions: int) -> Jet:
    """ψ_k, and derivatives in x, at the knots: (problems, knots, functions) each.

    The derivatives are those of the grid's splines, since a step is kept as such a spline: where f'
    is small it matters that they agree. All problems must have the same ends.
    """
    unit = _unit_hermite(tuple(grid.ends[0].tolist()), grid.knots, grid.stride, functions)
    scale = grid.scale[:, None, None]
    parts = (unit.value, unit.first, unit.second)
    return Jet(*(part.T / scale**order for order, part in enumerate(parts)))


@functools.lru_cache(maxsize=8)
def _unit_hermite(ends: tuple[float, ...], knots: int, stride: int, functions: int) -> Jet:
    """At location 0 and scale 1, (functions, knots): each function is a problem of a grid."""
    one = torch.ones(functions, dtype=torch.float64, device="cpu")
    rows = torch.tensor([ends], dtype=torch.float64, device="cpu").expand(functions, -1)
    grid = Grid(0 * one, one, rows, knots, stride=stride)
    u = torch.sinh(grid.t[0]).clamp(-40, 40)  # where to float64 all are 0
    polynomials = torch.from_numpy(hermite_e.hermevander(u.numpy(), functions - 1)).T
    norms = torch.tensor(
        [math.factorial(k) for k in range(functions)], dtype=torch.float64, device="cpu"
    ).sqrt()
    values = polynomials * torch.exp(-(u**2) / 2) / norms[:, None]
    return grid.jet(grid.spline(values))


class Span:
    """The directions of some problems that are sums of so many Hermite functions.

    Args:
        problems: of monotone f.
        functions: how many.
        scale_free: whether H - ½ log var is to fall, or H.
    """

    def __init__(self, problems: Problems, functions: int, scale_free: bool = False) -> None:
        self.problems, grid, f = problems, problems.grid, problems.f
        self._basis = hermite(grid, functions)
        terms = (problems.p / f.first)[..., None] * self._basis.first
        if scale_free:
            mean, variance = problems.mean_and_variance()
            pull = problems.p * (f.value - mean) / variance
            terms = terms - pull[..., None] * self._basis.value
        slopes, sizes = ((grid.weights[..., None] * part).sum(-2) for part in (terms, terms.abs()))
        slopes = slopes.where(slopes.abs() > NEGLIGIBLE * sizes, 0.0)
        weighted = self._basis.value * (grid.weights / f.first.abs())[..., None]
        metric = self._basis.value.mT @ weighted
        self._root, failed = torch.linalg.cholesky_ex(metric)
        self.resolved = failed == 0
        """(problems,): whether the functions are told from one another."""
        self.downwards = -torch.cholesky_solve(slopes[..., None], self._root)[..., 0]
        """The coefficients of D's projection, (problems, functions)."""

    def jet(self, coefficients: Tensor) -> Jet:
        """The sums with (problems, functions) coefficients, (problems, knots)."""
        parts = (self._basis.value, self._basis.first, self._basis.second)
        return Jet(*((part @ coefficients[..., None])[..., 0] for part in parts))

    def largest(self, coefficients: Tensor) -> Tensor:
        """The sums' largest absolute values, (problems,)."""
        return (self._basis.value @ coefficients[..., None])[..., 0].abs().amax(-1)

    def nearest(self, coefficients: Tensor, floor: Tensor) -> Tensor:
        """The nearest steps after which |f'| is above a floor, or where it was if that was below.

        Args:
            coefficients: of the steps, (problems, functions); floor: (problems, knots).
        """
        slopes = self.problems.f.first.abs()
        longest = LONGEST * self.problems.grid.scale * slopes.amax(-1)
        coefficients = coefficients / (self.largest(coefficients) / longest).clamp(min=1.0)[:, None]
        rows = self._basis.first * self.problems.f.first.sign()[..., None]
        least = (floor - slopes).clamp(max=0.0)
        below = (rows @ coefficients[..., None])[..., 0] < least
        nearest, sinks = coefficients.clone(), below.any(-1) & self.resolved
        if sinks.any():
            parts = (coefficients, self._root, rows, least)
            nearest[sinks] = _nearest(*(part[sinks] for part in parts))
        return nearest


def _nearest(wanted: Tensor, root: Tensor, rows: Tensor, least: Tensor) -> Tensor:
    """The c with rows · c >= least whose |rootᵀ (c - wanted)| is smallest; least <= 0.

    Lawson and Hanson's least distance programming: with z = rootᵀ (c - wanted)/size it asks for the
    smallest z with a z >= b, which the residual of one non-negative least-squares problem gives,
    and gives to all digits if z is not long: c = 0 would do, so with this size it is at most 1.

    Shapes:
        wanted: (problems, n); root: (problems, n, n); rows: (problems, m, n); least: (problems, m).
    """
    wanted, least = wanted[..., None], least[..., None]
    size = (root.mT @ wanted).norm(dim=1, keepdim=True)
    a = torch.linalg.solve_triangular(root, rows.mT, upper=False)
    b = (least - rows @ wanted) / size
    matrix = torch.cat([a, b.mT], 1)
    target = np.append(np.zeros(a.shape[1]), 1.0)
    weights = np.stack([nnls(one, target)[0] for one in matrix.numpy()])
    residual = matrix @ torch.from_numpy(weights)[..., None] - torch.from_numpy(target)[:, None]
    z = -residual[:, :-1] / residual[:, -1:] * size
    return (wanted + torch.linalg.solve_triangular(root.mT, z, upper=True))[..., 0]
