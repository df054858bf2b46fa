"""CRReLU composed of PyTorch's own operators: the reference, and the fallback without kernels.

It runs on any device, is differentiable to any order, and shares no code with the kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# exp(-x²/2) is zero from here on; beyond it, inf · 0 would make a NaN of the limits.
_FAR = {torch.float32: 20.5, torch.float64: 55.0}


def crrelu(input: Tensor, epsilon: Tensor, *, channel_dim: int = 1) -> Tensor:
    """max(0, x) + ε · x · exp(-x²/2), composed.

    16-bit types are computed in float32 and rounded once.

    Args:
        input: any shape; float32, float64, bfloat16 or float16.
        epsilon: (1,), or (C,) with C the input's size along ``channel_dim``; float32 or the
            input's dtype.
        channel_dim: the input's dimension that an epsilon of C values lies along.

    Returns:
        A tensor of the input's shape and dtype.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as :func:`crrelu_ext.crrelu`.
    """
    check_arguments(input, epsilon, channel_dim)
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    x = input.to(dtype)
    shape: list[int] = []  # one epsilon as 0-dim, or a 0-dim input would come back as (1,)
    if epsilon.numel() != 1:
        shape = [1] * input.dim()
        shape[channel_dim] = epsilon.numel()
    near = x.masked_fill(x.abs() > _FAR[dtype], 0)  # NaN stays, also when this is differentiated
    bump = near * torch.exp(near * near * -0.5)
    return (torch.relu(x) + epsilon.to(dtype).reshape(shape) * bump).to(input.dtype)


def check_arguments(input: Tensor, epsilon: Tensor, channel_dim: int) -> None:
    """Raises an error that names the argument unless CRReLU is defined on these."""
    for name, tensor in (("input", input), ("epsilon", epsilon)):
        if not isinstance(tensor, Tensor):
            given = type(tensor).__name__
            raise TypeError(f"crrelu: {name} is a {given}; allowed is a torch.Tensor")
        if tensor.layout != torch.strided:
            raise ValueError(f"crrelu: {name} has layout {tensor.layout}; allowed is torch.strided")
    if not isinstance(channel_dim, int):
        given = type(channel_dim).__name__
        raise TypeError(f"crrelu: channel_dim is a {given}; allowed is an int")
    if input.dtype not in DTYPES:
        raise TypeError(f"crrelu: input has dtype {input.dtype}; allowed are {DTYPES}")
    if epsilon.dtype not in (torch.float32, input.dtype):
        raise TypeError(
            f"crrelu: epsilon has dtype {epsilon.dtype}; allowed are torch.float32 and the input's "
            f"dtype, {input.dtype}"
        )
    if epsilon.device != input.device:
        raise RuntimeError(
            f"crrelu: epsilon is on {epsilon.device} but input is on {input.device}; both must be "
            "on the same device"
        )
    if epsilon.dim() != 1:
        raise ValueError(
            f"crrelu: epsilon has shape {tuple(epsilon.shape)}; allowed are (1,) and (C,), C the "
            "input's size along channel_dim"
        )
    if epsilon.numel() == 1:
        return
    if not -input.dim() <= channel_dim < input.dim():
        raise IndexError(
            f"crrelu: channel_dim is {channel_dim}, but input has {input.dim()} dimensions; an "
            f"epsilon of {epsilon.numel()} values needs an input with that dimension"
        )
    if input.shape[channel_dim] != epsilon.numel():
        raise ValueError(
            f"crrelu: epsilon has {epsilon.numel()} values, but input has size "
            f"{input.shape[channel_dim]} along channel_dim {channel_dim}; allowed are that many "
            "or 1"
        )
