"""Nested tensors: element by element on the values of the jagged ones; others are refused."""

# mypy: disable-error-code="attr-defined"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def is_jagged(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.layout == torch.jagged


def check_not_nested(name: str, argument: str, tensor: Tensor) -> None:
    """Raises a ValueError for a nested tensor that ``on_values`` does not take."""
    if tensor.is_nested:
        raise ValueError(
            f"{name}: {argument} is a nested tensor of layout {tensor.layout}; allowed are dense "
            "tensors, and as input, gate or up (without out) nested ones of layout torch.jagged"
        )


def on_values(
    function: Callable[..., Tensor],
    name: str,
    inputs: tuple[Tensor, ...],
    parameter: Tensor,
    *others: Any,
) -> Tensor:
    """``function`` of the values, as a nested tensor with the ragged shape of the first input.

    Args:
        function: takes the values, the parameter and what there is beside it.
        name: the operator's, for errors.
        parameter: epsilon, or a table.
        others: with epsilon, the last is channel_dim.

    Raises:
        ValueError: an input is not nested, or of another ragged shape; epsilon's values lie along
            the batch or the ragged dimension.
    """
    first = inputs[0]
    for argument, other in zip(("gate", "up"), inputs, strict=False):  # alone it is jagged
        if not is_jagged(other):
            check_not_nested(name, argument, other)
    for other in inputs:
        if not is_jagged(other) or other.shape != first.shape:
            raise ValueError(
                f"{name}: inputs have shapes {[tuple(x.shape) for x in inputs]}, at least one of "
                "them nested; allowed are nested tensors of one ragged shape"
            )
    for argument, other in zip(
        ("epsilon", "place") if others else ("table",), (parameter, *others), strict=False
    ):
        if isinstance(other, Tensor):
            check_not_nested(name, argument, other)
    ragged = first._ragged_idx
    if others and parameter.numel() != 1:
        channel_dim = others[-1]
        inside = -first.dim() <= channel_dim < first.dim()
        if not (inside and ragged < channel_dim % first.dim()):
            raise ValueError(
                f"{name}: channel_dim is {channel_dim}; with a nested tensor of {first.dim()} "
                f"dimensions, allowed are those behind the ragged one, {ragged}"
            )
        others = (*others[:-1], channel_dim % first.dim() - 1)  # values have no batch dimension
    values = function(*(x.values() for x in inputs), parameter, *others)
    return torch.nested.nested_tensor_from_jagged(
        values,
        first.offsets(),
        first.lengths(),
        jagged_dim=ragged,
        min_seqlen=first._maybe_min_seqlen,
        max_seqlen=first._maybe_max_seqlen,
    )
