"""torch.func on the operators themselves, against the composed formula; see test_opinfo.py too."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.testing import assert_close

from crrelu_ext import crrelu, crrelu_glu, reference

PAIRS = [(crrelu, reference.crrelu), (crrelu_glu, reference.crrelu_glu)]
IDS = ["crrelu", "crrelu_glu"]


def arguments(function: Callable[..., Tensor], channels: int, device: str) -> tuple[Tensor, ...]:
    """Inputs (3, 4) and an epsilon; away from 0, where the second derivative does not exist."""
    count = 2 if function is crrelu_glu else 1
    inputs = [torch.randn(3, 4, dtype=torch.float64, device=device) for _ in range(count)]
    inputs[0] += 0.1 * inputs[0].sign()
    epsilon = torch.linspace(-0.7, 0.4, channels, dtype=torch.float64, device=device)
    return (*inputs, epsilon)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(("function", "composed"), PAIRS, ids=IDS)
def test_grad_and_hessian(
    device: str, function: Callable[..., Tensor], composed: Callable[..., Tensor], channels: int
) -> None:
    tensors = arguments(function, channels, device)
    every = tuple(range(len(tensors)))

    def total(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *tensors: (f(*tensors) ** 2).sum()

    transforms: list[Any] = [grad, hessian]
    for transform in transforms:
        ours, theirs = (transform(total(f), argnums=every)(*tensors) for f in (function, composed))
        assert_close(ours, theirs)
    pairs: list[Any] = list(itertools.product((jacfwd, jacrev), repeat=2))
    for a, b in pairs:
        ours, theirs = (
            a(b(total(f), argnums=every), argnums=every)(*tensors) for f in (function, composed)
        )
        assert_close(ours, theirs)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(("function", "composed"), PAIRS, ids=IDS)
def test_vmap_along_any_dimensions(
    device: str, function: Callable[..., Tensor], composed: Callable[..., Tensor], channels: int
) -> None:
    """Every combination of places for the batch, also none, in values and in gradients."""
    tensors = arguments(function, channels, device)
    for places in itertools.product((None, 0, 1, -1), repeat=len(tensors)):
        if places == (None,) * len(tensors):
            continue
        batched = []
        for tensor, place in zip(tensors, places, strict=True):
            stacked = torch.stack([tensor, -0.5 * tensor, 2 * tensor])
            batched.append(tensor if place is None else stacked.movedim(0, place))
        in_dims: Any = tuple(places)
        assert_close(
            vmap(function, in_dims=in_dims)(*batched), vmap(composed, in_dims=in_dims)(*batched)
        )
        every = tuple(range(len(tensors)))
        ours, theirs = (
            vmap(grad(lambda *t, f=f: f(*t).square().sum(), argnums=every), in_dims=in_dims)(
                *batched
            )
            for f in (function, composed)
        )
        assert_close(ours, theirs)
