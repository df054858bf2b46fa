"""How far results may lie from the exact ones: one table, by dtype."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .oracle import Array, exact_numbers


class Tolerance(NamedTuple):
    """Bounds on errors."""

    value: float
    """f: in ulps of the larger of |max(0, x)| and |ε x exp(-x²/2)|."""
    derivative: float
    """f' and ∂f/∂ε of one element: in ulps of the larger of their terms."""
    epsilon_gradient: float
    """The sum of grad_output · ∂f/∂ε: relative to the sum of its terms' magnitudes."""


# Of the 16-bit types half an ulp of the result is one of the larger term, where both terms have the
# same sign and the result passes a power of two; the rest is the arithmetic in float32.
TOLERANCES = {
    torch.float32: Tolerance(2, 3, 1e-6),
    torch.float64: Tolerance(3, 4, 1e-14),
    torch.bfloat16: Tolerance(1.01, 1.01, 1e-5),
    torch.float16: Tolerance(1.05, 1.05, 1e-5),
}

NEIGHBOUR = 1
"""16-bit types, at epsilons of ordinary size: steps from the correctly rounded value."""


def assert_sums(grad_epsilon: Tensor, terms: Array, dtype: torch.dtype) -> None:
    """Each gradient of an epsilon is right relative to the magnitudes that were added.

    Args:
        grad_epsilon: as computed for an input of this dtype, and then rounded to its own.
        terms: grad_output · ∂f/∂ε as (elements that share an epsilon, epsilons).
    """
    info = torch.finfo(grad_epsilon.dtype)
    exact = terms.sum(0)
    bound = TOLERANCES[dtype].epsilon_gradient * np.abs(terms).sum(0)
    bound += info.eps / 2 * np.abs(exact) + info.smallest_normal * info.eps / 2
    assert (np.abs(exact_numbers(grad_epsilon) - exact) <= bound).all()
