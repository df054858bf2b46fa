"""The core: many monotone activations under many densities at once, on grids (problems, knots).

Everything here is float64 and knows neither torch.distributions nor callables: it takes the values
of log p, p', f, f' and f'' at the knots, wherever they come from, be it the formulas of one problem
or the histograms of all layers of a network.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.interpolate import BSpline, make_interp_spline
from scipy.sparse.linalg import spsolve
from torch import Tensor

DEGREE = 5  # the second derivative of a quintic spline is still accurate to the fourth order


@dataclass(frozen=True)
class Jet:
    """A function's value and first two derivatives with respect to x, at the same points."""

    value: Tensor
    first: Tensor
    second: Tensor

    def __add__(self, other: Jet) -> Jet:
        return Jet(self.value + other.value, self.first + other.first, self.second + other.second)

    def __mul__(self, factor: Tensor | float) -> Jet:
        return Jet(self.value * factor, self.first * factor, self.second * factor)


@functools.cache
def _integration_weights(knots: int) -> Tensor:
    """The weight of each value in the integral of the quintic spline through unit-spaced knots."""
    knot_vector = make_interp_spline(np.arange(knots), np.zeros(knots), DEGREE).t
    collocation = BSpline.design_matrix(np.arange(knots), knot_vector, DEGREE)
    integrals = (knot_vector[DEGREE + 1 :] - knot_vector[: -DEGREE - 1]) / (DEGREE + 1)
    return torch.from_numpy(spsolve(collocation.T.tocsc(), integrals))


@dataclass(frozen=True)
class Grid:
    """Knots x = location + scale · sinh(t): dense in the middle, and far out where tails are heavy.

    Between two neighbouring ends the functions are smooth; such a piece has its own knots, equally
    spaced in t. Where knots of two pieces meet they stand for the limits from both sides.

    Shapes:
        location, scale: (problems,); ends, in t: (problems, pieces + 1);
        x, and every function on the grid: (problems, pieces · knots of a piece).
    """

    location: Tensor
    scale: Tensor
    ends: Tensor
    knots: int
    graded: bool = False
    """Whether the knots crowd at the ends, for integrands with a logarithm's pole there. Such a
    grid integrates, but does not differentiate."""
    stride: int = 1
    """Splines go through every stride-th knot, so that details that are finer are left out.

    Descent needs this: D holds -p f''/f', so f + C D is a step of a heat equation backwards, and
    the finest detail, rounding included, grows fastest.
    """

    @property
    def pieces(self) -> int:
        return self.ends.shape[-1] - 1

    @functools.cached_property
    def t(self) -> Tensor:
        s = torch.linspace(0, 1, self.knots, dtype=torch.float64, device="cpu")
        if self.graded:  # the polynomial whose first two derivatives vanish at both ends
            s = s**3 * (10 + s * (6 * s - 15))
        # lerp is exact at both ends, which may be kinks.
        return torch.lerp(self.ends[:, :-1, None], self.ends[:, 1:, None], s).flatten(-2)

    @functools.cached_property
    def _grading(self) -> Tensor:
        """How much further apart the knots of a piece are than if they were equally spaced."""
        s = torch.linspace(0, 1, self.knots, dtype=torch.float64, device="cpu")
        return 30 * (s * (1 - s)) ** 2 if self.graded else torch.ones_like(s)

    @functools.cached_property
    def x(self) -> Tensor:
        return self.location[:, None] + self.scale[:, None] * torch.sinh(self.t)

    @functools.cached_property
    def _dt_dx(self) -> Tensor:
        return 1 / (self.scale[:, None] * torch.cosh(self.t))

    @functools.cached_property
    def _spacing(self) -> Tensor:
        """dt by the knot's number, at every knot of a grid that is not graded."""
        spacing = self.ends.diff(dim=-1) / (self.knots - 1)
        return spacing.repeat_interleave(self.knots, -1)

    @functools.cached_property
    def weights(self) -> Tensor:
        """Of the values in an integral over x, (problems, knots)."""
        weights = (_integration_weights(self.knots) * self._grading).repeat(self.pieces)
        return weights * self._spacing / self._dt_dx

    def integral(self, values: Tensor) -> Tensor:
        """The integrals over x, (problems,)."""
        return (self.weights * values).sum(-1)

    def running_integral(self, values: Tensor) -> Tensor:
        """At every knot the integral over x from the first knot, (problems, knots)."""
        spline = self.spline(values * self._spacing / self._dt_dx).antiderivative()
        pieces = torch.from_numpy(spline(np.arange(self.knots))).movedim(0, -1)
        before = pieces[..., -1:].cumsum(-2) - pieces[..., -1:]
        return (pieces + before).flatten(-2)

    def coarser(self) -> Grid:
        """The grid of every second knot; their number is odd."""
        return replace(self, knots=(self.knots + 1) // 2)

    def every_second(self, values: Tensor) -> Tensor:
        """The values at the coarser grid's knots."""
        return values.unflatten(-1, (self.pieces, self.knots))[..., ::2].flatten(-2)

    def spline(self, values: Tensor, end_curvature: Tensor | None = None) -> BSpline:
        """The quintic spline through the values at every stride-th knot of each piece.

        It is a function of the knot's number; its values are (numbers, problems, pieces).

        Args:
            values: (problems, knots).
            end_curvature: (2, problems, pieces), the second derivatives in x that it is to have at
                both ends of the pieces, beside no slope; None leaves the ends free.
        """
        rows = values.unflatten(-1, (self.pieces, self.knots)).movedim(-1, 0)[:: self.stride]
        ends = None
        if end_curvature is not None:
            dx = (self._spacing / self._dt_dx).unflatten(-1, (self.pieces, self.knots))
            zero = np.zeros(rows.shape[1:])
            ends = [
                [(1, zero), (2, curvature * dx[..., end] ** 2)]
                for curvature, end in zip(end_curvature, (0, -1), strict=True)
            ]
        return make_interp_spline(np.arange(0, self.knots, self.stride), rows, DEGREE, bc_type=ends)

    def jet(self, spline: BSpline) -> Jet:
        """A spline's values at all knots, and its derivatives in x."""
        value, first, second = (
            torch.from_numpy(spline(np.arange(self.knots), order)).movedim(0, -1).flatten(-2)
            / self._spacing**order
            for order in range(3)
        )  # the derivatives in t
        curvature = torch.tanh(self.t) * self._dt_dx**2
        return Jet(value, first * self._dt_dx, second * self._dt_dx**2 - first * curvature)


@dataclass(frozen=True)
class Problems:
    """Strictly monotone activations f of inputs with densities p, on a grid of (problems, knots).

    Args:
        log_p: the logarithm of the densities.
        f: the activations.
    """

    grid: Grid
    log_p: Tensor
    f: Jet

    @functools.cached_property
    def p(self) -> Tensor:
        return self.log_p.exp()

    def entropy_terms(self) -> Tensor:
        """-p log q, with q = p/|f'|, whose integral is H(f) = h(X) + E[log |f'|]."""
        terms = self.p * (self.f.first.abs().log() - self.log_p)
        return terms.where(self.p > 0, 0.0)

    def entropy(self) -> Tensor:
        """H(f) in nats, (problems,)."""
        return self.grid.integral(self.entropy_terms())

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Of the output, (problems, 1) each."""
        mean = self.grid.integral(self.p * self.f.value)[:, None]
        return mean, self.grid.integral(self.p * (self.f.value - mean) ** 2)[:, None]

    def correction(self, dp: Tensor) -> Tensor:
        """D = ±(p' - p f''/f'), the direction in which H falls; - where f decreases.

        Args:
            dp: p', which need not be the derivative of p: one that is estimated from a sample has
                a bandwidth of its own.
        """
        return self.f.first.sign() * (dp - self.p * self.f.second / self.f.first)

    def scale_free_correction(self, dp: Tensor) -> Tensor:
        """D + |f'| p (z - mean)/var, the direction in which H - ½ log var falls."""
        mean, variance = self.mean_and_variance()
        pull = self.f.first.abs() * self.p * (self.f.value - mean) / variance
        return self.correction(dp) + pull

    def slope(self, direction: Jet) -> Tensor:
        """dH/dC of f + C · direction at C = 0, E[direction'/f'], (problems,)."""
        return self.grid.integral(self.p * direction.first / self.f.first)

    def moved(self, direction: Jet, step_size: Tensor) -> Problems:
        """The same with f + C · direction; step_size is (problems,).

        H(f + C δ) = H + E[log(1 + C δ'/f')] is concave in C, so it falls for every C for which
        f + C δ is monotone if it falls at all.
        """
        return Problems(self.grid, self.log_p, self.f + direction * step_size[:, None])
