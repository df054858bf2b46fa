"""Activations as the engine takes and gives them: callables on tensors, and their derivatives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.interpolate import BSpline
from torch import Tensor

from crrelu_ext.eafo.grid import DEGREE, Grid, Jet
from crrelu_ext.elementwise import (
    Function,
    evaluate,
    recorded,
    refuse_unless_floating,
    slope_of,
)


@dataclass(frozen=True)
class ClosedForm:
    """An activation with closed forms of its derivatives, which are then taken as they are.

    Of use where automatic differentiation loses digits, or where f' underflows less than f.
    """

    function: Function
    first: Function
    second: Function

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)

    def jet(self, x: Tensor) -> Jet:
        return Jet(self.function(x), self.first(x), self.second(x))


def jet(activation: Function, x: Tensor) -> Jet:
    """f, f' and f'' at x, which is float64: the activation's own, or by autograd."""
    if isinstance(activation, ClosedForm):
        return activation.jet(x)
    with recorded(x) as x:
        value = evaluate(activation, x)
        first = slope_of(value, x)
        second = slope_of(first, x)
    return Jet(value.detach().double(), first.detach(), second.detach())


def first_derivative(activation: Function, x: Tensor) -> Tensor:
    """f' at x, likewise."""
    if isinstance(activation, ClosedForm):
        return activation.first(x)
    with recorded(x) as x:
        return slope_of(evaluate(activation, x), x).detach()


def identity(x: Tensor) -> Tensor:
    """f(x) = x."""
    return x


class CorrectedActivation:
    """gain · f(x) + a spline on a grid, which is continued as a constant.

    What EAFO derives. It takes tensors of any float dtype (16-bit types are computed in float32)
    and device, is differentiable, and can be pickled if f can. Where f is smooth, so are four
    derivatives of it, but for the points where pieces of the grid meet.

    Args:
        base: f.
        gain: its factor.
        grid: of one problem.
        spline: as the grid makes them.
    """

    @torch.inference_mode(False)  # autograd takes no tensors that were made in it
    def __init__(self, base: Function, gain: float, grid: Grid, spline: BSpline) -> None:
        self.base = base
        self.gain = gain
        self.location = grid.location.item()
        self.scale = grid.scale.item()
        t = grid.t.unflatten(-1, (grid.pieces, grid.knots))[0, :, :: grid.stride]
        self.breakpoints = torch.cat([t[:, :-1].flatten(), t[-1:, -1]])
        spacing = (grid.ends.diff(dim=-1) / (grid.knots - 1))[0]
        starts = range(0, grid.knots - 1, grid.stride)
        # Taylor coefficients from the left end of each interval, highest first for Horner's rule.
        self.coefficients = torch.stack(
            [
                (torch.from_numpy(spline(starts, order))[:, 0] / spacing**order).T.flatten()
                / math.factorial(order)
                for order in range(DEGREE, -1, -1)
            ]
        )

    def __call__(self, x: Tensor) -> Tensor:
        refuse_unless_floating("x", x)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        wide = x.to(dtype)
        breakpoints = self.breakpoints.to(wide)
        t = torch.asinh((wide - self.location) / self.scale)
        t = t.clamp(breakpoints[0], breakpoints[-1])
        interval = torch.bucketize(t.detach(), breakpoints[1:-1], right=True)
        offset = t - _pick(breakpoints, interval)
        correction = torch.zeros_like(wide)
        for coefficient in self.coefficients.to(wide):
            correction = correction * offset + _pick(coefficient, interval)
        return (self.gain * evaluate(self.base, wide) + correction).to(x.dtype)


def _pick(table: Tensor, places: Tensor) -> Tensor:
    """table[places], by an operation that torch.vmap knows for places of any shape."""
    return table.index_select(0, places.flatten()).view_as(places)
