"""Functions that map each element of a tensor by itself, and their derivatives by autograd.

torch.func does the same, and takes two to three times as long for tensors of some thousand values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


def refuse_unless_elementwise(activation: Function, x: Tensor) -> None:
    """Raises a TypeError or ValueError unless it maps each element of a tensor by itself."""
    if not callable(activation):
        given = type(activation).__name__
        raise TypeError(f"activation has type {given}; allowed is a callable on tensors")
    value = activation(x)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"activation's result has type {type(value).__name__}; allowed is a torch.Tensor"
        )
    if value.shape != x.shape:
        raise ValueError(
            f"activation made shape {tuple(value.shape)} of {tuple(x.shape)}; allowed are "
            "functions that go element by element"
        )
    some, of_these = x.flip(0)[::2], value.flip(0)[::2]
    # Vector and scalar code may differ in float32's last bits.
    if not torch.allclose(activation(some), of_these, rtol=1e-6, atol=1e-9, equal_nan=True):
        raise ValueError("activation is not elementwise: each output may depend on one input only")


@contextmanager
def recorded(x: Tensor) -> Iterator[Tensor]:
    """A copy of x with which autograd records what is computed, wherever this is called."""
    with torch.inference_mode(False), torch.enable_grad():
        yield x.detach().clone().requires_grad_()


def slope_of(y: Tensor, x: Tensor) -> Tensor:
    """dy/dx of a recorded y(x), which may be differentiated again; 0 where y is a constant."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True, materialize_grads=True)
    return slope
