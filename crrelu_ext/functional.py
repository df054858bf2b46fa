"""CRReLU as functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from crrelu_ext import reference
from crrelu_ext._nested import check_not_nested
from crrelu_ext._ops import _C


def crrelu(
    input: Tensor, epsilon: Tensor, *, channel_dim: int = 1, out: Tensor | None = None
) -> Tensor:
    """f(x) = max(0, x) + ε · x · exp(-x²/2).

    Its derivatives are f'(x) = [x > 0] + ε · (1 - x²) · exp(-x²/2) and ∂f/∂ε = x · exp(-x²/2);
    the kink at 0 takes the derivative of ReLU in PyTorch, so f'(0) = ε.

    Args:
        input: any shape and strides; float32, float64, bfloat16 or float16. 16-bit types are
            computed in float32.
        epsilon: (1,), or (C,) with C the input's size along ``channel_dim``; float32 or the
            input's dtype, on the input's device.
        channel_dim: the input's dimension that an epsilon of C values lies along.
        out: where to write the result, without gradients; resized and cast to as in torch.

    Returns:
        A tensor of the input's shape, dtype and, where the input has no gaps, strides.

    Raises:
        TypeError: an argument is no tensor, or of a dtype that is not allowed.
        ValueError, IndexError: a shape or layout that is not allowed, or no such dimension.
        RuntimeError: different devices; ``out`` overlaps the input or takes part in autograd.

    Source: Sun et al., "A Method on Searching Better Activation Functions", arXiv 2405.12954.
    """
    if out is not None:
        return _write(input, epsilon, channel_dim, out)
    if is_compiling():  # show torch.compile the formula: it fuses that with what stands around it
        return reference.crrelu(input, epsilon, channel_dim=channel_dim)
    return _crrelu(input, epsilon, channel_dim)


def crrelu_(input: Tensor, epsilon: Tensor, *, channel_dim: int = 1) -> Tensor:
    """:func:`crrelu` in place, without gradients: writes over ``input`` and returns it."""
    return _write(input, epsilon, channel_dim, input)


def _write(input: Tensor, epsilon: Tensor, channel_dim: int, out: Tensor) -> Tensor:
    if is_compiling():
        return _write_composed(input, epsilon, channel_dim, out)
    return _write_native(input, epsilon, channel_dim, out)


def crrelu_at(input: Tensor, epsilon: Tensor, place: Tensor, *, channel_dim: int = 1) -> Tensor:
    """f(x) = max(0, x) + ε · (x - μ) · exp(-u²/2), u = (x - μ)/σ: CRReLU where the input is.

    Its derivatives are f'(x) = [x > 0] + ε · (1 - u²) · exp(-u²/2) and ∂f/∂ε, the bump; μ and σ
    are measured, so there are none by them. At μ = 0, σ = 1 this is :func:`crrelu`.

    Args:
        input: any shape and strides; float32, float64, bfloat16 or float16. 16-bit types are
            computed in float32.
        epsilon: (1,), or (C,) with C the input's size along ``channel_dim``; float32 or the
            input's dtype.
        place: (2, 1) or (2, C), as epsilon: μ, any, and σ, positive; float32 or float64, on the
            input's device, without gradient.
        channel_dim: the input's dimension that an epsilon of C values lies along.

    Returns:
        A tensor of the input's shape and dtype.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as :func:`crrelu`; also if ``place``
        requires grad. That σ is positive is not looked at.
    """
    if is_compiling():
        return reference.crrelu_at(input, epsilon, place, channel_dim=channel_dim)
    return _at(input, epsilon, place, channel_dim)


def crrelu_glu(gate: Tensor, up: Tensor, epsilon: Tensor, *, channel_dim: int = 1) -> Tensor:
    """f(gate) · up, with f as in :func:`crrelu`: in the place of SwiGLU's silu(gate) · up.

    Its derivatives are f'(gate) · up, f(gate) and, for epsilon, ∂f/∂ε · up; the backward pass
    forms all three at once, and keeps ``gate``, ``up`` and ``epsilon`` alone.

    Args:
        gate: any shape and strides; float32, float64, bfloat16 or float16. 16-bit types are
            computed in float32 and rounded once.
        up: of gate's shape, dtype and device.
        epsilon: (1,), or (C,) with C the gate's size along ``channel_dim``; float32 or the gate's
            dtype.
        channel_dim: the dimension that an epsilon of C values lies along; -1 in a transformer.

    Returns:
        A tensor of the gate's shape and dtype.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as :func:`crrelu`.

    Source of the gated form: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.
    """
    if is_compiling():
        return reference.crrelu_glu(gate, up, epsilon, channel_dim=channel_dim)
    return _glu(gate, up, epsilon, channel_dim)


def tabulated(input: Tensor, table: Tensor) -> Tensor:
    """The function that a table describes: cubics between its knots, tangents beyond them.

    Between two knots it is the cubic with the values and slopes that the table has there; its
    derivative is that cubic's. A tangent without slope is constant as far as infinity.

    Args:
        input: any shape and strides; float32, float64, bfloat16 or float16. 16-bit types are
            computed in float32.
        table: (3, knots), float32 or float64, on the input's device, without gradient: where the
            knots are, equally spaced and increasing; the values; the slopes.

    Returns:
        A tensor of the input's shape and dtype.

    Raises:
        TypeError, ValueError, RuntimeError: an argument that is not as said.
    """
    if is_compiling():
        return reference.tabulated(input, table)
    return _tabulated(input, table)


def _write_composed(input: Tensor, epsilon: Tensor, channel_dim: int, out: Tensor) -> Tensor:
    output = reference.crrelu(input, epsilon, channel_dim=channel_dim)
    if not isinstance(out, Tensor):
        raise TypeError(f"crrelu: out has type {type(out).__name__}; allowed is a torch.Tensor")
    for argument, tensor in (("input", input), ("out", out)):
        check_not_nested("crrelu", argument, tensor)
    # torch's own out= resizes, casts, refuses overlap and gradients; times 1 changes nothing.
    return torch.mul(output, 1, out=out)


if _C is not None:
    _crrelu = _C.crrelu
    _at = _C.crrelu_at
    _glu = _C.crrelu_glu
    _tabulated = _C.tabulated
    _write_native = _C.crrelu_out
else:

    def _crrelu(input: Tensor, epsilon: Tensor, channel_dim: int) -> Tensor:
        return reference.crrelu(input, epsilon, channel_dim=channel_dim)

    def _at(input: Tensor, epsilon: Tensor, place: Tensor, channel_dim: int) -> Tensor:
        return reference.crrelu_at(input, epsilon, place, channel_dim=channel_dim)

    def _glu(gate: Tensor, up: Tensor, epsilon: Tensor, channel_dim: int) -> Tensor:
        return reference.crrelu_glu(gate, up, epsilon, channel_dim=channel_dim)

    _tabulated = reference.tabulated
    _write_native = _write_composed
