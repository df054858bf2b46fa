"""Where the line must be cut, so that between two cuts activation and density are smooth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import elementwise
from torch import Tensor

from crrelu_ext.eafo.activations import Function, jet
from crrelu_ext.eafo.densities import Density
from crrelu_ext.eafo.grid import Jet

PROBES = 2048
FLAT_MASS = 1e-7
"""The probability in the tails on which f' may be 0 to float64; it is cut off."""
CONSTANT_MASS = 1e-4
"""The probability on which f may be constant to float64 though f' is not 0: F.gelu below -8.3,
whose f' is off by a hundredth there."""
SMALLEST_JUMP = 1e-6
"""Of a function, relative to its size there."""


def solve(function: Function, target: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """x with function(x) = target in each of (n,) brackets, at whose ends it lies on both sides."""

    def difference(x: np.ndarray, target: np.ndarray) -> np.ndarray:
        return function(torch.from_numpy(x)).numpy() - target

    bracket = (lower.numpy(), upper.numpy())
    # A root at 0 is not to be followed down to the smallest number there is.
    largest = max(np.abs(ends).max(initial=0) for ends in bracket)
    tolerances = {"xatol": 1e-16 * largest, "xrtol": 1e-14}
    found = elementwise.find_root(
        difference, bracket, args=(target.numpy(),), tolerances=tolerances
    )
    return torch.from_numpy(found.x)


def between(density: Density, lower: float, upper: float, number: int = PROBES) -> Tensor:
    """Points from lower to upper, as dense everywhere as the grids' knots are."""
    ends = torch.tensor([lower, upper], dtype=torch.float64)
    t = torch.asinh((ends - density.location) / density.scale)
    points = torch.linspace(0, 1, number, dtype=torch.float64) * (t[1] - t[0]) + t[0]
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
    """Where p or p' jumps between some of the points x."""

    def functions(x: Tensor) -> Tensor:
        return torch.stack([density.log_prob(x).exp(), density.derivative(x)])

    p, dp = values = functions(x)
    return _find_jumps(functions, x, values, torch.stack([p, p / _spread(density, x) + dp.abs()]))


def activation_jumps(activation: Function, density: Density, x: Tensor, f: Jet) -> Tensor:
    """Where f' or f'' jumps between some of the points x; f is the activation there."""

    def functions(x: Tensor) -> Tensor:
        f = jet(activation, x)
        return torch.stack([f.first, f.second])

    slope = f.first.abs()
    scales = torch.stack([slope, slope / _spread(density, x) + f.second.abs()])
    return _find_jumps(functions, x, torch.stack([f.first, f.second]), scales)


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
    places = [
        _close_in(functions, x[i + 3], x[i + 4]) for i in stands_out.nonzero().flatten().tolist()
    ]
    return torch.tensor([place for place in places if place is not None], dtype=torch.float64)


def _close_in(functions: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> float | None:
    """The place of a jump between two points, or None where the functions turn out smooth."""
    change = functions(torch.stack([low, high])).diff(dim=-1).abs()
    before = change.clamp(min=torch.finfo(torch.float64).tiny)
    for _ in range(9):  # 64^9 = 2^54
        x = low + (high - low) * torch.linspace(0, 1, 65, dtype=torch.float64)
        change = functions(x).diff(dim=-1).abs() / before
        largest = int(change.amax(0).argmax())
        low, high = x[largest], x[largest + 1]
    if change[:, largest].max() < 0.1:
        return None
    return 0.0 if low <= 0 <= high else ((low + high) / 2).item()


def find_folds(activation: Function, x: Tensor, f: Jet, jumps: Tensor) -> Tensor:
    """Where f' changes its sign between some of the points x: smoothly, or by one of the jumps."""
    sign = f.first.sign()
    change = (sign[1:] * sign[:-1] < 0).nonzero().flatten()
    if not len(change):
        return jumps[:0]
    low, high = x[change], x[change + 1]
    folds = solve(lambda x: jet(activation, x).first, torch.zeros_like(low), low, high)
    for jump in jumps:
        folds = torch.where((low < jump) & (jump < high), jump, folds)
    return folds
