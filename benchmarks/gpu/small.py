"""Small calls of every kernel, for compute-sanitizer; ``large``: the main ones once, for ncu, whose
tables come when this ends."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import crrelu_ext

SHAPES = [
    *[((4097,), 0), ((200_003,), 0), ((33, 77), 1), ((3, 5, 1031), 1), ((300, 64), 1)],
    ((65, 3, 1031), 1),
]


def main_kernels(
    shape: tuple[int, ...], channels: int, channel_dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    input = torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True)
    epsilon = torch.full((channels,), 0.01, device="cuda", requires_grad=True)
    output = crrelu_ext.crrelu(input, epsilon, channel_dim=channel_dim)
    torch.autograd.grad(output, (input, epsilon), torch.ones_like(output))
    return input, epsilon, output


def all_kernels(
    shape: tuple[int, ...], channels: int, channel_dim: int, dtype: torch.dtype
) -> None:
    input, epsilon, output = main_kernels(shape, channels, channel_dim, dtype)
    misaligned = torch.randn(output.numel() + 1, device="cuda", dtype=dtype)[1:].view(shape)
    crrelu_ext.crrelu_(misaligned, epsilon.detach(), channel_dim=channel_dim)
    arguments = (input.detach(), output.detach(), epsilon.detach(), channel_dim)
    torch.ops.crrelu_ext.crrelu_glu(*arguments)
    torch.ops.crrelu_ext.crrelu_glu_backward(misaligned, *arguments, [True, True, True])
    place = torch.stack([torch.zeros_like(epsilon), torch.ones_like(epsilon)]).detach()
    at = crrelu_ext.crrelu_at(input, epsilon, place, channel_dim=channel_dim)
    torch.autograd.grad(at, (input, epsilon), torch.ones_like(at))
    dynamic = crrelu_ext.DynamicActivation(device="cuda")  # a table, and what counts
    torch.autograd.grad(dynamic(input).sum(), input)


if sys.argv[1:] == ["large"]:
    for dtype in (torch.float32, torch.bfloat16):
        for channels in (1, 1024):
            main_kernels((2**16, 1024), channels, 1, dtype)
else:
    for dtype in crrelu_ext.reference.DTYPES:
        for shape, channel_dim in SHAPES:
            all_kernels(shape, 1, channel_dim, dtype)
            if len(shape) > 1:
                all_kernels(shape, shape[channel_dim], channel_dim, dtype)
torch.cuda.synchronize()
