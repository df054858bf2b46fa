"""Calls of crrelu_ext that several test modules make."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import crrelu_ext


class Results(NamedTuple):
    output: Tensor
    grad_input: Tensor
    grad_epsilon: Tensor


def evaluate(
    input: Tensor, epsilon: Tensor, grad_output: Tensor | None = None, *, channel_dim: int = 1
) -> Results:
    """The output and both gradients; for a grad_output of ones, if none is given."""
    input, epsilon = input.detach().requires_grad_(), epsilon.detach().requires_grad_()
    output = crrelu_ext.crrelu(input, epsilon, channel_dim=channel_dim)
    if grad_output is None:
        grad_output = torch.ones_like(output)
    return Results(output.detach(), *torch.autograd.grad(output, (input, epsilon), grad_output))
