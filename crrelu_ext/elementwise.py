"""Functions that map each element of a tensor by itself, and their derivatives by autograd.

torch.func does the same, and takes two to three times as long for tensors of some thousand values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

Function = Callable[[Tensor], Tensor]


def refuse_unless_elementwise(activation: Function, x: Tensor) -> None:
    """Raises a TypeError or ValueError unless it maps each element of a tensor by itself."""
    if not callable(activation):
        given = type(activation).__name__
        raise TypeError(f"activation has type {given}; allowed is a callable on tensors")
    value = value_of(activation, x)
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
    again = value_of(activation, some)
    if not torch.allclose(again, of_these, rtol=1e-6, atol=1e-9, equal_nan=True):
        raise ValueError("activation is not elementwise: each output may depend on one input only")


def refuse_unless_floating(name: str, x: object) -> None:
    """Raises a TypeError unless it is a tensor of a floating-point dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} has type {type(x).__name__}; allowed is a torch.Tensor")
    if not x.is_floating_point():
        raise TypeError(f"{name} has dtype {x.dtype}; allowed are floating-point ones")


def evaluate(activation: Function, x: Tensor) -> Tensor:
    """activation(x), also of one that works in place, and of a module of other dtype or device."""
    if not isinstance(activation, nn.Module) or isinstance(activation, torch.jit.ScriptModule):
        return activation(x.clone())  # TorchScript's keep their own
    parameters = {name: tensor.to(x) for name, tensor in activation.named_parameters()}
    buffers = {name: tensor.to(x.device) for name, tensor in activation.named_buffers()}
    value: Tensor = functional_call(activation, parameters | buffers, (x.clone(),))
    return value


@torch.no_grad()
def value_of(activation: Function, x: Tensor) -> Tensor:
    """activation(x) likewise, without gradients of what else it depends on."""
    return evaluate(activation, x)


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
