"""From a derived activation to one that a network can afford: a table with native kernels."""

from __future__ import annotations

import math
import warnings
from functools import partial
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from crrelu_ext import reference
from crrelu_ext.elementwise import (
    Function,
    evaluate,
    recorded,
    refuse_unless_elementwise,
    slope_of,
    value_of,
)
from crrelu_ext.functional import tabulated

TOLERANCE = 1e-3
"""Of the density's scale: a table that misses its function by more warns."""
_PROBES = 16
"""Points of each interval at which the table is held against the function."""


class DerivedActivation(nn.Module):
    """A function of one variable as a monotone cubic table, at the speed of a built-in activation.

    Between equally spaced knots it is the cubic with the function's values and slopes there; beyond
    them it goes on along the tangents. A slope of more than three times the rise beside it is cut
    down to that, but for an interval where the function turns: so where that rises the cubic does
    (Fritsch and Carlson, SIAM J. Numer. Anal. 17, 238). The table is a buffer: it is in the
    state_dict, it is not trained, and another one may be copied into it, which a compiled model
    notices without compiling again.

    Args:
        activation: a callable on float64 tensors, differentiable by autograd; as it comes from
            :func:`crrelu_ext.eafo.improve`, or any other. It is not kept.
        lower, upper: the first and the last knot.
        knots: their number. Up to 33 are looked up without memory access by AVX-512.
        device, dtype: of the table, which is float32 or float64.

    Attributes:
        table: (3, knots): where the knots are; the values; the slopes.
        error: a 0-dim tensor, the largest |table - activation| between the knots, in float64. Above
            a thousandth of the density's scale (``activation.scale`` if that is a number, else 1) a
            warning says so.

    Shapes:
        input and output alike, any; 16-bit inputs are computed in float32.

    Raises:
        ValueError: bounds or knots that are no table; an activation that is not elementwise, not
            differentiable, or not finite between the bounds. TypeError: an activation that is not
            callable or returns no tensor.
    """

    table: Tensor
    error: Tensor

    def __init__(
        self,
        activation: Function,
        *,
        lower: float,
        upper: float,
        knots: int = 32,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        table, error = tabulate(activation, lower, upper, knots)
        dtype = torch.float32 if dtype is None else dtype
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype is {dtype}; allowed are torch.float32 and torch.float64")
        scale = getattr(activation, "scale", 1.0)
        scale = float(scale) if isinstance(scale, Real) else 1.0
        if error > TOLERANCE * scale:
            warnings.warn(
                f"DerivedActivation: {knots} knots between {lower:g} and {upper:g} miss the "
                f"activation by up to {error:.2g}, more than {TOLERANCE:g} of the scale, "
                f"{scale:g}; take more knots, or bounds that are closer",
                stacklevel=2,
            )
        device = torch.get_default_device() if device is None else device
        with torch.inference_mode(False):  # autograd takes no table that was made in it
            stored = table.to(dtype, copy=True)
            self.register_buffer("table", stored.to(device))
            missed = torch.tensor(error, device=device, dtype=torch.float32)
            self.register_buffer("error", missed)
        if not (stored.isfinite().all() and (stored[0].diff() > 0).all()):
            raise ValueError(
                f"lower is {lower} and upper {upper}; allowed are bounds between which {knots} "
                f"knots are apart, and finite with their values, in {dtype}"
            )

    def forward(self, input: Tensor) -> Tensor:
        return tabulated(input, self.table)

    def _apply(self, fn: Function, recurse: bool = True) -> DerivedActivation:
        # model.bfloat16() is meant for what is big; a table in 16 bits would be a stair.
        table, error = self.table, self.error
        super()._apply(fn, recurse)
        if self.table.dtype not in (torch.float32, torch.float64):
            self.table = table.to(self.table.device)
            self.error = error.to(self.error.device)
        return self

    def extra_repr(self) -> str:
        return f"knots={self.table.shape[1]}, dtype={self.table.dtype}"


def tabulate(activation: Function, lower: float, upper: float, knots: int) -> tuple[Tensor, float]:
    """The table of an activation, (3, knots) float64 on the CPU, and its largest error between."""
    refuse_unless_bounds(lower, upper)
    # mypy takes an int for no Integral, and what follows for unreachable.
    if not isinstance(knots, int | Integral) or knots < 2:
        raise ValueError(f"knots is {knots}; allowed are whole numbers from 2 on")
    knots, ends = int(knots), (float(lower), float(upper))
    linspace = partial(torch.linspace, *ends, dtype=torch.float64, device="cpu")
    places, between = linspace(knots), linspace(_PROBES * (knots - 1) + 1)
    refuse_unless_elementwise(activation, between)
    with recorded(places) as x:
        values = evaluate(activation, x)
        if not values.requires_grad:
            raise ValueError(
                "activation's result does not depend on its input, as far as autograd knows; "
                "allowed are functions made of torch's differentiable operators"
            )
        slopes = slope_of(values, x).detach()
    table = torch.stack([places, values.detach().double(), slopes])
    if not table.isfinite().all():
        place = places[~table.isfinite().all(0)][0].item()
        raise ValueError(f"activation or its slope is not finite at x = {place:g}")
    table[2] = monotone_slopes(table[1], table[2], (upper - lower) / (knots - 1))
    missed = reference.tabulated(between, table) - value_of(activation, between)
    return table, missed.abs().max().item()


def refuse_unless_bounds(lower: float, upper: float) -> None:
    """Raises a TypeError or ValueError unless they are finite and in order."""
    for name, bound in (("lower", lower), ("upper", upper)):
        if not isinstance(bound, float | Real):
            raise TypeError(f"{name} is {bound!r}; allowed is a number")
    if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
        raise ValueError(f"lower is {lower} and upper {upper}; allowed are finite lower < upper")


def monotone_slopes(values: Tensor, slopes: Tensor, width: float) -> Tensor:
    """The slopes, cut down to three times the rise of each interval beside them.

    But for an interval where the function turns: the slopes at its ends have different signs, and
    so have the rises on both sides of it (at the table's ends, the slopes there stand for those).
    """
    rises = values.diff() / width
    before, after = torch.cat([slopes[:1], rises[:-1]]), torch.cat([rises[1:], slopes[-1:]])
    turns = (before * after < 0) & (slopes[:-1] * slopes[1:] < 0)
    limits = (3 * rises.abs()).masked_fill(turns, torch.inf)
    none = limits.new_full((1,), torch.inf)
    limit = torch.minimum(torch.cat([none, limits]), torch.cat([limits, none]))
    return slopes.clamp(-limit, limit)
