"""How the operators act on DTensors: each on its shard, with the native kernels.

Values go element by element, so any sharding of the input is kept. The gradient of an epsilon is a
sum over the elements that share it: where those lie on several ranks, it is Partial. The backward
pass is linear in grad_output, so a Partial one stays Partial.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

Rules = list[tuple[list[Any], list[Any]]]
"""Placements of the outputs beside those of the arguments; None for what is no tensor."""


def register() -> None:
    ops = torch.ops.crrelu_ext
    register_sharding(ops.crrelu.default)(_forward)
    register_sharding(ops.crrelu.out)(_out)
    register_sharding(ops.crrelu_backward.default)(_backward)
    register_sharding(ops.crrelu_at.default)(_at_forward)
    register_sharding(ops.crrelu_at_backward.default)(_at_backward)
    register_sharding(ops.crrelu_glu.default)(_glu_forward)
    register_sharding(ops.crrelu_glu_backward.default)(_glu_backward)
    register_sharding(ops.tabulated.default)(_tabulated)
    register_sharding(ops.tabulated_backward.default)(_tabulated_backward)


def _shards(input: Any, epsilon: Any, channel_dim: int) -> list[tuple[Any, Any, Any]]:
    """Each way to shard the input, with epsilon's placement and that of its gradient."""
    shared = epsilon.shape[0] == 1
    ways: list[tuple[Any, Any, Any]] = []
    for dim in range(len(input.shape)):
        if not shared and dim == channel_dim % len(input.shape):
            ways.append((Shard(dim), Shard(0), Shard(0)))
        else:
            ways.append((Shard(dim), Replicate(), Partial()))
    return ways


def _masked(placements: list[Any], output_mask: list[bool]) -> list[Any]:
    return [p if wanted else None for p, wanted in zip(placements, output_mask, strict=True)]


def _forward(input: Any, epsilon: Any, channel_dim: int = 1) -> Rules:
    whole = Replicate()
    rules: Rules = [([whole], [whole, whole, None])]
    for shard, of_epsilon, _ in _shards(input, epsilon, channel_dim):
        rules.append(([shard], [shard, of_epsilon, None]))
    return rules


def _out(input: Any, epsilon: Any, channel_dim: int = 1, *, out: Any) -> Rules:
    rules = _forward(input, epsilon, channel_dim)
    return [(outputs, arguments + outputs) for outputs, arguments in rules]


def _backward(
    grad_output: Any, input: Any, epsilon: Any, channel_dim: int, output_mask: list[bool]
) -> Rules:
    whole, partial = Replicate(), Partial()
    rules: Rules = [
        ([whole, whole], [whole, whole, whole, None, None]),
        ([partial, partial], [partial, whole, whole, None, None]),
    ]
    for shard, of_epsilon, of_gradient in _shards(input, epsilon, channel_dim):
        rules.append(([shard, of_gradient], [shard, shard, of_epsilon, None, None]))
    return [(_masked(outputs, output_mask), arguments) for outputs, arguments in rules]


def _of_place(of_epsilon: Any) -> Any:
    """It has one row more than epsilon."""
    return Shard(1) if of_epsilon == Shard(0) else Replicate()


def _at_forward(input: Any, epsilon: Any, place: Any, channel_dim: int = 1) -> Rules:
    rules = _forward(input, epsilon, channel_dim)
    return [(out, [x, e, _of_place(e), dim]) for out, (x, e, dim) in rules]


def _at_backward(
    grad_output: Any,
    input: Any,
    epsilon: Any,
    place: Any,
    channel_dim: int,
    output_mask: list[bool],
) -> Rules:
    rules = _backward(grad_output, input, epsilon, channel_dim, output_mask)
    return [(out, [g, x, e, _of_place(e), *others]) for out, (g, x, e, *others) in rules]


def _glu_forward(gate: Any, up: Any, epsilon: Any, channel_dim: int = 1) -> Rules:
    whole, partial = Replicate(), Partial()
    rules: Rules = [
        ([whole], [whole, whole, whole, None]),
        ([partial], [whole, partial, whole, None]),  # linear in up
    ]
    for shard, of_epsilon, _ in _shards(gate, epsilon, channel_dim):
        rules.append(([shard], [shard, shard, of_epsilon, None]))
    return rules


def _glu_backward(
    grad_output: Any, gate: Any, up: Any, epsilon: Any, channel_dim: int, output_mask: list[bool]
) -> Rules:
    whole, partial = Replicate(), Partial()
    rules: Rules = [
        ([whole] * 3, [whole, whole, whole, whole, None, None]),
        ([partial] * 3, [partial, whole, whole, whole, None, None]),
    ]
    for shard, of_epsilon, of_gradient in _shards(gate, epsilon, channel_dim):
        rules.append(([shard, shard, of_gradient], [shard, shard, shard, of_epsilon, None, None]))
    return [(_masked(outputs, output_mask), arguments) for outputs, arguments in rules]


def _tabulated(input: Any, table: Any) -> Rules:
    whole = Replicate()
    shards = map(Shard, range(len(input.shape)))
    return [([whole], [whole, whole]), *(([shard], [shard, whole]) for shard in shards)]


def _tabulated_backward(grad_output: Any, input: Any, table: Any) -> Rules:
    whole, partial = Replicate(), Partial()
    shards = map(Shard, range(len(input.shape)))
    return [
        ([whole], [whole, whole, whole]),
        ([partial], [partial, whole, whole]),
        *(([shard], [shard, shard, whole]) for shard in shards),
    ]
