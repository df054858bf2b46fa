"""Where the line must be cut, so that between two cuts activation and density are smooth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from crrelu_ext.eafo.activations import first_derivative, jet
from crrelu_ext.eafo.densities import Density, SampleDensity
from crrelu_ext.eafo.grid import Jet
from crrelu_ext.elementwise import Function

PROBES = 2048
FLAT_MASS = 1e-7
"""The probability in the tails on which f' may be 0 to float64; it is cut off."""
CONSTANT_MASS = 1e-4
"""The probability on which f may be constant to float64 though f' is not 0: F.gelu below -8.3,
whose f' is off by a hundredth there."""
SMALLEST_JUMP = 1e-6
"""Of a function, relative to its size there."""
HALVINGS = 60
"""From the largest bracket down to neighbouring numbers."""
PARTS = 2048
"""Into which a bracket is divided at once, five times for the 2^54 numbers that it may hold."""


def solve(function: Function, target: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """x with function(x) = target in each of (n,) brackets, at whose ends it lies on both sides.

    Ridders' method: each step at least halves the bracket, and ends where the function, divided by
    the exponential that makes it straight, has its root. scipy.optimize.elementwise.find_root would
    do, but spends most of its time on bookkeeping, ten times as much as this.
    """
    at_lower, at_upper = function(lower) - target, function(upper) - target
    # A root at 0 is not to be followed down to the smallest number there is.
    smallest = 1e-16 * torch.maximum(lower.abs(), upper.abs()).amax() if len(lower) else 0.0
    found, unsettled = lower.clone(), torch.arange(len(lower), device="cpu")
    for _ in range(HALVINGS):
        middle = (lower + upper) / 2
        at_middle = function(middle) - target
        straight = 1 - (at_lower / at_middle) * (at_upper / at_middle)
        part = (at_lower - at_upper).sign() * at_middle.sign() / straight.sqrt()
        x = middle + (upper - middle) * part.nan_to_num(0.0)
        at_x = function(x) - target
        for point, value in ((middle, at_middle), (x, at_x)):
            above = value.sign() == at_lower.sign()
            lower, at_lower = point.where(above, lower), value.where(above, at_lower)
            upper, at_upper = upper.where(above, point), at_upper.where(above, value)
        moved = (x - found[unsettled]).abs() > smallest + 1e-14 * x.abs()
        found[unsettled] = x
        # Where a function is flat, as near its maximum, rounding settles it sooner than its place.
        goes_on = moved & (at_x.abs() > 1e-15 * target.abs())
        if not goes_on.any():
            break
        unsettled, target, lower, upper, at_lower, at_upper = (
            values[goes_on] for values in (unsettled, target, lower, upper, at_lower, at_upper)
        )
    return found


def between(density: Density, lower: float, upper: float, crowded: bool = False) -> Tensor:
    """Points from lower to upper, as dense everywhere as the grids' knots are.

    Crowded at both ends their distances from there grow like squares.
    """
    ends = torch.tensor([lower, upper], dtype=torch.float64, device="cpu")
    t = torch.asinh((ends - density.location) / density.scale)
    s = torch.linspace(0, 1, PROBES, dtype=torch.float64, device="cpu")
    if crowded:
        s = s * s * (3 - 2 * s)
    points = s * (t[1] - t[0]) + t[0]
    return (density.location + density.scale * torch.sinh(points)).clamp(ends[0], ends[1])


def where_not_flat(density: Density, x: Tensor, f: Jet) -> Density:
    """The density with its support cut where, far in a tail, f' is 0 to float64, as tanh' at 19.

    Args:
        x: points all over the support; f: the activation there.

    Raises:
        ValueError: f is flat on more than negligible parts, or f, f' or f'' is not finite.
    """
    for name, values in (("f", f.value), ("f'", f.first), ("f''", f.second)):
        if not values.isfinite().all():
            place = x[~values.isfinite()][0].item()
            raise ValueError(f"activation has {name} = inf or NaN at x = {place:.6g}")
    moving = (f.first != 0).nonzero().flatten()
    flat = (f.first[1:] == 0) & (f.first[:-1] == 0)
    constant = f.value.diff() == 0
    p = density.log_prob(x).exp()
    masses = x.diff() * (p[1:] + p[:-1]) / 2
    atom = flat | constant
    if (
        masses[flat].sum() > FLAT_MASS
        or masses[constant].sum() > CONSTANT_MASS
        or len(moving) < 2
        or flat[moving[0] : moving[-1]].any()
    ):
        raise ValueError(
            "activation is flat, at least to float64, on a probability of "
            f"{masses[atom].sum():.3g} between x = {x[:-1][atom][0]:.4g} and "
            f"{x[1:][atom][-1]:.4g}: the output has an atom, and H = -inf. Take a part of the line "
            "where f is not flat (of ReLU x > 0), give f a leak, or take a density that is narrower"
        )
    # Where f' begins to be 0 it is so by rounding, here and there: stay a little away.
    away = len(x) // 100
    return replace(
        density,
        lower=x[moving[0] + away].item() if flat[0] else density.lower,
        upper=x[moving[-1] - away].item() if flat[-1] else density.upper,
    )


def density_jumps(density: Density, x: Tensor) -> Tensor:
    """Where p or p' jumps between some of the points x; nowhere if it is a sum of kernels."""
    if isinstance(density.source, SampleDensity):
        return x[:0]

    def functions(x: Tensor) -> Tensor:
        log_p, derivative = density.log_prob_and_derivative(x)
        return torch.stack([log_p.exp(), derivative])

    p, dp = values = functions(x)
    return _find_jumps(functions, x, values, torch.stack([p, p / _spread(density, x) + dp.abs()]))


def activation_jumps(activation: Function, density: Density, x: Tensor, f: Jet) -> Tensor:
    """Where f, f' or f'' jumps between some of the points x; f is the activation there."""

    def functions(x: Tensor) -> Tensor:
        f = jet(activation, x)
        return torch.stack([f.value, f.first, f.second])

    slope = f.first.abs()
    size = f.value.abs().max().expand_as(slope)  # f where it is small may be but rounding
    scales = torch.stack([size, slope, slope / _spread(density, x) + f.second.abs()])
    return _find_jumps(functions, x, torch.stack([f.value, f.first, f.second]), scales)


def _spread(density: Density, x: Tensor) -> Tensor:
    """The length that is natural at x: the density's scale, or in the tails the distance."""
    return ((x - density.location) ** 2 + density.scale**2).sqrt()


def _find_jumps(
    functions: Callable[[Tensor], Tensor], x: Tensor, values: Tensor, scales: Tensor
) -> Tensor:
    """The places where one of some functions jumps, in order.

    The third difference of a smooth function changes little from one place to the next; where one
    stands out, that interval is searched.

    Args:
        functions: from (n,) points to (functions, n) values.
        x: the points, increasing; values: the functions there.
        scales: of the functions, like values.
    """
    change = values.diff(dim=-1)
    third = (change[:, 1:-1] - (change[:, :-2] + change[:, 2:]) / 2).abs()
    around = torch.maximum(third[:, :-4], third[:, 4:])
    stands_out = (third[:, 2:-2] > 10 * around + SMALLEST_JUMP * scales[:, 3:-4]).any(0)
    at = stands_out.nonzero().flatten() + 3
    if not len(at):
        return x[at]
    whole = change[:, at, None].abs().clamp(min=torch.finfo(torch.float64).tiny)

    def size(x: Tensor) -> Tensor:
        """What of the whole change the parts have, in the function that changes most."""
        return (functions(x.flatten()).unflatten(-1, x.shape).diff(dim=-1).abs() / whole).amax(0)

    places, sizes = _close_in(size, x[at], x[at + 1])
    return places[sizes >= 0.1]


def _close_in(
    score: Callable[[Tensor], Tensor], low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """The places in (n,) brackets where a score is largest, and the scores.

    Args:
        score: from (n, parts + 1) increasing points to (n, parts) numbers.
    """
    parts = torch.linspace(0, 1, PARTS + 1, dtype=torch.float64, device="cpu")
    for _ in range(5):
        x = torch.lerp(low[:, None], high[:, None], parts)
        best, part = score(x).max(-1)
        low, high = (x.gather(-1, part[:, None] + i)[:, 0] for i in range(2))
    return ((low + high) / 2).where((low > 0) | (high < 0), 0.0), best


def find_folds(activation: Function, x: Tensor, f: Jet, jumps: Tensor) -> Tensor:
    """Where f' changes its sign between some of the points x: smoothly, or by one of the jumps."""
    sign = f.first.sign()
    change = (sign[1:] * sign[:-1] < 0).nonzero().flatten()
    if not len(change):
        return x[change]

    low, high = x[change], x[change + 1]
    folds = torch.full_like(low, torch.nan)
    for jump in jumps:
        folds = torch.where((low < jump) & (jump < high), jump, folds)
    smooth = folds.isnan()
    low, high = low[smooth], high[smooth]
    slope = partial(first_derivative, activation)
    return folds.masked_scatter(smooth, solve(slope, torch.zeros_like(low), low, high))
