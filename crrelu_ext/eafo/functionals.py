"""The theory's functionals of one activation and one density."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from crrelu_ext.derived import refuse_unless_bounds
from crrelu_ext.eafo.activations import ClosedForm, CorrectedActivation, jet
from crrelu_ext.eafo.cuts import between, density_jumps, solve
from crrelu_ext.eafo.densities import Density, DensityLike, as_density
from crrelu_ext.eafo.grid import Grid
from crrelu_ext.eafo.problem import REFINEMENTS, analyse, inside, make_grid
from crrelu_ext.elementwise import Function, refuse_unless_floating, value_of

LOST = 1e-8
"""The part of the probability that a worst activation may lose, of the tails or by integration."""


def output_entropy(activation: Function, density: DensityLike) -> float:
    """H(f(X)) = -∫ q log q dz in nats, to 1e-5 or better.

    Of a monotone f it is h(X) + E[log |f'(X)|]; of another, q is the folded density.

    Raises:
        ValueError: the output has an atom (f is flat somewhere), or H is not known to 1e-5.
    """
    return analyse(activation, density).entropy


def correction(activation: Function, density: DensityLike) -> Function:
    """D, a callable on tensors, without gradients: the direction in which H(f(X)) falls.

    D(x) = p'(x) - p(x) f''(x)/f'(x) for an increasing f, with the other sign for a decreasing one.
    For one that is not monotone |f'|⁴ p (log q)'(f(x)), q the folded density, brought to 0 where q
    is not smooth; this is tabulated, and constant beyond the support.

    Raises:
        ValueError: D jumps, eta = -D/f' diverges at the bounds, or D is not resolved.
        TypeError: when called, for an x of no floating-point dtype.
    """
    problem = analyse(activation, density)
    spline = problem.direction()
    if not problem.monotone:
        return CorrectedActivation(torch.zeros_like, 0.0, problem.grid, spline)
    sign = problem.core.f.first[0, 0].sign()

    def D(x: Tensor) -> Tensor:
        refuse_unless_floating("x", x)
        wide = x.detach().double().cpu()
        f = jet(activation, wide)
        log_p, dp = problem.density.log_prob_and_derivative(wide)
        p = log_p.exp()
        values = dp - (p * f.second / f.first).where(p > 0, 0.0)
        return (sign * values).where(~wide.isnan(), wide).to(x)

    return D


def inverse_correction(activation: Function, density: DensityLike) -> Function:
    """eta, a callable on tensors, without gradients: the correction of a monotone f's inverse y(z).

    eta(z) = -(p'(y) y' + p(y) y''/y') = -D(y)/f'(y); the step is y + C eta.

    Raises:
        ValueError: as :func:`correction`; f is not monotone; and when called, for a z that f does
            not reach inside the support. TypeError: as there, for z.
    """
    problem = analyse(activation, density)
    D = correction(activation, density)
    if not problem.monotone:
        raise ValueError("activation is not monotone: it has no inverse. Use correction")
    view = problem.density
    ends = torch.tensor([view.lower, view.upper], dtype=torch.float64, device="cpu")
    f = partial(value_of, activation)
    reached = f(ends).sort()[0]

    def eta(z: Tensor) -> Tensor:
        refuse_unless_floating("z", z)
        wide = z.detach().double().cpu().flatten()
        if not ((wide >= reached[0]) & (wide <= reached[1])).all():
            raise ValueError(
                f"z has values outside of [{reached[0]:.6g}, {reached[1]:.6g}], where f takes all "
                "but a negligible part of the probability"
            )
        y = solve(f, wide, ends[:1].expand_as(wide), ends[1:].expand_as(wide))
        return (-D(y) / jet(activation, y).first).reshape(z.shape).to(z)

    return eta


def entropy_slope(activation: Function, density: DensityLike) -> float:
    """dH/dC of f + C D at C = 0, -∫ D²/|f'| dx: zero for the worst activation alone.

    Raises:
        ValueError: as :func:`correction`.
    """
    problem = analyse(activation, density)
    return problem.slope(problem.grid.jet(problem.direction()))


def worst_activation(density: DensityLike, lower: float = -1.0, upper: float = 1.0) -> ClosedForm:
    """The worst activation with boundary conditions, f(x) = a + (b - a) F(x).

    F is the density's distribution function. Its output is uniform on (a, b), so that its entropy,
    log(b - a), is the largest of all with these bounds. It is tabulated, to about 1e-10, and
    constant beyond the support. It can be pickled if the density can.

    Raises:
        ValueError: the bounds are not finite and in order, or the density is refused, or its
            integral over the knots is not 1. TypeError: bounds that are no numbers.
    """
    refuse_unless_bounds(lower, upper)
    view = as_density(density)
    grid = make_grid(view, density_jumps(view, between(view, view.lower, view.upper)))
    F = _distribution_function(view, grid)
    for _ in range(REFINEMENTS):
        if abs(1 - F[0, -1]) > LOST:
            grid = replace(grid, knots=4 * grid.knots - 3)
            F = _distribution_function(view, grid)
    lost = 1 - F[0, -1].item()
    if not abs(lost) <= LOST:
        raise ValueError(
            f"density integrates to 1 but for {lost:.2g} (allowed is {LOST:g}): it has poles, or "
            "details too fine for the knots, or tails too heavy. Smooth it"
        )
    height = float(upper) - float(lower)
    return ClosedForm(
        CorrectedActivation(torch.zeros_like, 0.0, grid, grid.spline(lower + height * F)),
        partial(_times_p, height, view),
        partial(_times_dp, height, view),
    )


def _distribution_function(density: Density, grid: Grid) -> Tensor:
    return grid.running_integral(density.log_prob(inside(grid))[None].exp())


def _times_p(factor: float, density: Density, x: Tensor) -> Tensor:
    return factor * density.log_prob(x).exp()


def _times_dp(factor: float, density: Density, x: Tensor) -> Tensor:
    return factor * density.derivative(x)


@dataclass(frozen=True)
class Comparison:
    """One activation under a density; None where it was refused, with the reason."""

    name: str
    entropy: float | None
    error: float | None
    """An estimate of the entropy's error."""
    variance: float | None
    """Of the output; infinite also where it is not resolved."""
    scale_free_entropy: float | None
    """H - ½ log var, which no rescaling changes; of a normal output the largest, 1.41894. None
    also where the variance is infinite."""
    slope: float | None
    """dH/dC along the correction."""
    refusal: str | None


def compare(
    activations: Mapping[str, Function] | Sequence[Function], density: DensityLike
) -> list[Comparison]:
    """The entropies of several activations under one density, a row for each, lowest first.

    Args:
        activations: by name, or in a sequence, where they have their own names.

    Raises:
        TypeError: activations that are neither.
    """
    if not isinstance(activations, Mapping | Sequence):
        given = type(activations).__name__
        raise TypeError(f"activations has type {given}; allowed are a mapping and a sequence")
    named = (
        activations.items()
        if isinstance(activations, Mapping)
        else [(getattr(f, "__name__", repr(f)), f) for f in activations]
    )
    rows = [_row(name, activation, density) for name, activation in named]
    return sorted(rows, key=lambda row: math.inf if row.entropy is None else row.entropy)


def _row(name: str, activation: Function, density: DensityLike) -> Comparison:
    try:
        problem = analyse(activation, density)
    except ValueError as error:
        return Comparison(name, None, None, None, None, None, str(error))
    slope, refusal = None, None
    try:
        slope = problem.slope(problem.grid.jet(problem.direction()))
    except ValueError as error:
        refusal = str(error)
    known = problem.variance < math.inf
    scale_free = problem.entropy - math.log(problem.variance) / 2 if known else None
    return Comparison(
        name, problem.entropy, problem.error, problem.variance, scale_free, slope, refusal
    )


@dataclass(frozen=True)
class InverseError:
    """How far CRReLU's positive branch is from being the inverse of what the theory derives."""

    measured: float
    """The largest |g(f(x)) - x|."""
    at: float
    """The x where it is."""
    bound: float
    """ε² exp(-½), which it never exceeds."""


def crrelu_inverse_error(epsilon: float) -> InverseError:
    """The error of f(x) = x + ε x exp(-x²/2) as the inverse of g(z) = z - ε z exp(-z²/2).

    Raises:
        ValueError: epsilon is not finite, or larger than 1e100. TypeError: it is no number.
    """
    if not isinstance(epsilon, float | Real):
        raise TypeError(f"epsilon is {epsilon!r}; allowed is a number")
    if not abs(epsilon) <= 1e100:  # its square is the bound
        raise ValueError(f"epsilon is {epsilon}; allowed are finite numbers up to 1e100")

    def error(x: Tensor | float) -> Tensor:
        x = torch.as_tensor(x, dtype=torch.float64, device="cpu")
        z = x + epsilon * x * torch.exp(-x * x / 2)
        return (z - epsilon * z * torch.exp(-z * z / 2) - x).abs()

    # The error is even, and 0 beyond.
    x = torch.linspace(0, 12, 4001, dtype=torch.float64, device="cpu")
    top = x[error(x).argmax()].item()
    step = x[1].item()
    found = minimize_scalar(
        lambda x: -error(x).item(),
        bounds=(max(0, top - step), top + step),
        method="bounded",
        options={"xatol": 1e-10},
    )
    at = max(top, float(found.x), key=lambda x: error(x).item())
    return InverseError(error(at).item(), at, epsilon**2 * math.exp(-0.5))
