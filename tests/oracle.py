"""What CRReLU must give: the formula and its derivatives in arithmetic wider than the kernels'.

Nothing of crrelu_ext is used here. float64 judges float32 and the 16-bit types; mpmath, through
numpy arrays of `mpmath.mpf`, judges float64. Each quantity comes as the two terms whose sum it is,
because rounding errors are measured against the larger of them: where they cancel, the sum is small
and no computation that rounds its terms can be exact relative to it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mpmath
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]

mpmath.mp.prec = 150
_to_mpf = np.frompyfunc(mpmath.mpf, 1, 1)
_mp_exp = np.frompyfunc(mpmath.exp, 1, 1)


def to_numpy(tensor: Tensor) -> Array:
    """The same numbers as float64, which holds every dtype's exactly."""
    return tensor.detach().resolve_neg().cpu().double().numpy()


def to_mpmath(tensor: Tensor) -> Array:
    """The same finite numbers with 150 bits."""
    return _to_mpf(to_numpy(tensor))


def exact_numbers(tensor: Tensor) -> Array:
    """The same numbers in arithmetic that is wider than the dtype's; a 0-dim tensor's as (1,)."""
    tensor = torch.atleast_1d(tensor)
    return (to_mpmath if tensor.dtype == torch.float64 else to_numpy)(tensor)


class Terms(NamedTuple):
    """The exact value is first + second."""

    first: Array
    second: Array


class Formula:
    """CRReLU at x, of any shape; epsilon, where it is asked for, is a number or broadcasts."""

    def __init__(self, x: Array) -> None:
        self._x = x
        # exp(-100²/2) < 2^-7200 vanishes beside any epsilon; x beyond would only make inf · 0.
        near = np.clip(x, -100, 100)
        gaussian = (_mp_exp if x.dtype == object else np.exp)(-near * near / 2)
        self._bump = near * gaussian
        self._bump_slope = (1 - near * near) * gaussian

    def value(self, epsilon: Array | float) -> Terms:
        """max(0, x) and ε · x · exp(-x²/2)."""
        return Terms(np.maximum(self._x, 0), epsilon * self._bump)

    def input_derivative(self, epsilon: Array | float) -> Terms:
        """[x > 0] and ε · (1 - x²) · exp(-x²/2)."""
        return Terms((self._x > 0).astype(float), epsilon * self._bump_slope)

    def epsilon_derivative(self) -> Terms:
        """x · exp(-x²/2), one term."""
        return Terms(np.zeros(self._x.shape), self._bump)


def ulp(magnitude: Array, dtype: torch.dtype) -> Array:
    """The spacing of a dtype's numbers from |magnitude| on, which is float64."""
    info = torch.finfo(dtype)
    _, exponent = np.frexp(np.maximum(np.abs(magnitude), info.smallest_normal))
    return np.ldexp(info.eps, exponent - 1)


def error_in_ulps(actual: Tensor, terms: Terms) -> Array:
    """|actual - exact| in ulps of the larger term, and inf where just one of the two is NaN.

    Infinity counts as the number that would follow the largest, in what is got and in what is
    exact: an overflow is right just where the exact value lies beyond the dtype's range.
    """
    info = torch.finfo(actual.dtype)
    beyond = info.max / (1 - info.eps / 2)
    got = exact_numbers(actual)
    exact = terms.first + terms.second
    larger = np.maximum(np.abs(terms.first), np.abs(terms.second)).astype(float)
    distance = np.abs(np.clip(got, -beyond, beyond) - np.clip(exact, -beyond, beyond))
    ulps = distance.astype(float) / ulp(np.minimum(larger, info.max), actual.dtype)
    return _unless_nan(ulps, actual, exact)


def _unless_nan(error: Array, actual: Tensor, exact: Array) -> Array:
    """0 where both are NaN, inf where one is."""
    got_nan, exact_nan = np.isnan(to_numpy(actual)), np.isnan(exact.astype(float))
    return np.where(got_nan & exact_nan, 0.0, np.where(got_nan | exact_nan, np.inf, error))


def ordinal(tensor: Tensor) -> Array:
    """Numbers of a 16-bit type counted from 0 (both zeros) up and down; infinity is the last."""
    bits = tensor.detach().cpu().contiguous().view(torch.int16).numpy().astype(np.int64)
    return np.where(bits >= 0, bits, -(bits & 0x7FFF))


def steps_from_rounded(actual: Tensor, terms: Terms) -> Array:
    """How many steps the numbers of a 16-bit type are from the correctly rounded; NaN as above."""
    numbers = torch.arange(0x8000, dtype=torch.int32).to(torch.int16).view(actual.dtype)
    magnitudes = to_numpy(numbers)
    magnitudes = magnitudes[np.isfinite(magnitudes)]
    info = torch.finfo(actual.dtype)
    # Past the last of them a value rounds to infinity.
    midpoints = (magnitudes + np.append(magnitudes[1:], info.max / (1 - info.eps / 2))) / 2
    exact = terms.first + terms.second
    rounded = np.sign(exact) * np.searchsorted(midpoints, np.abs(exact))
    return _unless_nan(np.abs(ordinal(actual) - rounded), actual, exact)
