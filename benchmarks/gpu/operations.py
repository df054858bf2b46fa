"""What is timed: the kernels, and their rivals, on the same operands."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from device import Call, Device
from torch import Tensor
from torch.nn import functional as F

import crrelu_ext

CHANNELS = 1024
OTHER_LAYOUTS = {
    "192 epsilons": (-1, 192),
    "64 epsilons, 32 × 32": (-1, 64, 32, 32),
    "32 images of 512 × 32 × 32": (32, 512, 32, 32),
    "16 images of 256 × 64 × 64": (16, 256, 64, 64),
}
"""Of large inputs, with an epsilon for each channel. A warp's packs are not a part of the first's
rows, and a block's are more than a channel of the others; of few images, which the size must
fit, they make runs."""


def composed(input: Tensor, epsilon: Tensor) -> Tensor:
    """The formula as one writes it without this package."""
    return F.relu(input) + epsilon.to(input.dtype) * input * torch.exp(-0.5 * input.square())


def silu_gated(gate: Tensor, up: Tensor) -> Tensor:
    """SwiGLU's pointwise part, as models have it."""
    return F.silu(gate) * up


@dataclass(frozen=True)
class Operands:
    input: Tensor
    grad_output: Tensor
    halves: tuple[Tensor, Tensor]
    """The same memory as that of the two, as a matrix's halves, with gaps between their rows."""
    output: Tensor
    epsilon: Tensor
    epsilons: Tensor
    place: Tensor


def operands(device: Device, dtype: torch.dtype, numel: int) -> Operands:
    both = torch.randn(2 * numel, device=device.name, dtype=dtype)
    x, grad_output = both.chunk(2)
    left, right = both.view(-1, 2 * CHANNELS).chunk(2, -1)
    epsilons = torch.full((CHANNELS,), 0.01, device=device.name)
    place = torch.tensor([[0.1], [0.9]], device=device.name)
    return Operands(
        x, grad_output, (left, right), torch.empty_like(x), epsilons[:1], epsilons, place
    )


def other_layouts(o: Operands) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, grad_output and input."""
    numel = o.input.numel()
    for name, (rows, *row) in OTHER_LAYOUTS.items():
        whole = numel // math.prod(row)
        if numel >= 2**20 and rows in (-1, whole):
            grad, x = (
                t[: whole * math.prod(row)].view(whole, *row) for t in (o.grad_output, o.input)
            )
            yield f"CRReLU, {name}", grad, x


def forward_backward(function: Callable[..., Tensor], *leaves: Tensor, grad: Tensor) -> object:
    return torch.autograd.grad(function(*leaves), leaves, grad)


def cases(o: Operands, compiled: bool) -> Iterator[tuple[str, str, Call]]:
    """operation, name and call; rivals come one after another."""
    aten, ours = torch.ops.aten, torch.ops.crrelu_ext
    yield "forward", "copy_", partial(o.output.copy_, o.input)
    yield "forward", "CRReLU", partial(crrelu_ext.crrelu, o.input, o.epsilon)
    rows = o.grad_output.view(-1, CHANNELS), o.input.view(-1, CHANNELS)
    by_channel = f"CRReLU, {CHANNELS} epsilons"
    yield "forward", by_channel, partial(crrelu_ext.crrelu, rows[1], o.epsilons)
    placed = crrelu_ext.crrelu_at
    yield "forward", "CRReLU, placed", partial(placed, o.input, o.epsilon, o.place)
    yield "forward", "GELU erf", partial(F.gelu, o.input)
    yield "forward", "GELU tanh", partial(F.gelu, o.input, approximate="tanh")
    yield "forward", "SiLU", partial(F.silu, o.input)
    yield "forward", "ReLU", partial(F.relu, o.input)
    yield "forward", "eager", partial(composed, o.input, o.epsilon)
    for name, _, x in other_layouts(o):
        yield "forward", name, partial(crrelu_ext.crrelu, x, o.epsilons[: x.shape[1]])

    grads = o.grad_output, o.input
    backward = ours.crrelu_backward
    # As a backward pass does, it reads two tensors and writes one.
    yield "backward", "add", partial(torch.add, *grads, out=o.output)
    yield "backward", "CRReLU", partial(backward, *grads, o.epsilon, 1, [True, True])
    yield (
        "backward",
        "CRReLU, epsilon frozen",
        partial(backward, *grads, o.epsilon, 1, [True, False]),
    )
    yield "backward", by_channel, partial(backward, *rows, o.epsilons, 1, [True, True])
    for name, grad, x in other_layouts(o):
        epsilons = o.epsilons[: x.shape[1]]
        yield "backward", name, partial(backward, grad, x, epsilons, 1, [True, True])
    at = partial(ours.crrelu_at_backward, *grads, o.epsilon, o.place, 1, [True, True])
    yield "backward", "CRReLU, placed", at
    yield "backward", "GELU erf", partial(aten.gelu_backward, *grads)
    yield "backward", "GELU tanh", partial(aten.gelu_backward, *grads, approximate="tanh")
    yield "backward", "SiLU", partial(aten.silu_backward, *grads)

    halves = f"CRReLU, halves of rows of {2 * CHANNELS}"
    gate_and_up = {"CRReLU": (o.input, o.grad_output), halves: o.halves}
    for name, pair in gate_and_up.items():
        yield "gated", name, partial(crrelu_ext.crrelu_glu, *pair, o.epsilon)
    yield "gated", "SiLU", partial(silu_gated, *gate_and_up["CRReLU"])
    for name, pair in gate_and_up.items():
        grad = o.output.view_as(pair[0])
        gated = partial(ours.crrelu_glu_backward, grad, *pair, o.epsilon, 1, [True, True, True])
        yield "gated, backward", name, gated

    x, e = o.input.detach().requires_grad_(), o.epsilon.detach().requires_grad_()
    both = partial(forward_backward, grad=o.grad_output)
    yield "forward+backward", "CRReLU", partial(both, crrelu_ext.crrelu, x, e)
    yield "forward+backward", "GELU erf", partial(both, F.gelu, x)
    yield "forward+backward", "eager", partial(both, composed, x, e)
    if compiled:
        torch.compiler.reset()
        formula = torch.compile(composed, dynamic=False, fullgraph=True)
        yield "forward", "compiled", partial(formula, o.input, o.epsilon)
        yield "forward+backward", "compiled", partial(both, formula, x, e)
