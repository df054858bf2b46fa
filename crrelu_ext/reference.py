"""CRReLU composed of PyTorch's own operators: the reference, and the fallback without kernels.

It runs on any device, is differentiable to any order, and shares no code with the kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crrelu_ext._nested import check_not_nested, is_jagged, on_values

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
    if is_jagged(input):
        return on_values(_crrelu, "crrelu", (input,), epsilon, channel_dim)
    return _crrelu(input, epsilon, channel_dim)


def _crrelu(input: Tensor, epsilon: Tensor, channel_dim: int) -> Tensor:
    check_arguments(input, epsilon, channel_dim)
    return _value(input, epsilon, channel_dim).to(input.dtype)


def crrelu_at(input: Tensor, epsilon: Tensor, place: Tensor, *, channel_dim: int = 1) -> Tensor:
    """CRReLU with its bump at a place, composed; all as :func:`crrelu_ext.crrelu_at`."""
    if is_jagged(input):
        return on_values(_crrelu_at, "crrelu_at", (input,), epsilon, place, channel_dim)
    return _crrelu_at(input, epsilon, place, channel_dim)


def _crrelu_at(input: Tensor, epsilon: Tensor, place: Tensor, channel_dim: int) -> Tensor:
    check_arguments(input, epsilon, channel_dim, op="crrelu_at")
    _check_place(input, epsilon, place)
    return _value(input, epsilon, channel_dim, place).to(input.dtype)


def _check_place(input: Tensor, epsilon: Tensor, place: Tensor) -> None:
    _check_dense("crrelu_at", "place", place)
    if place.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"crrelu_at: place has dtype {place.dtype}; allowed are torch.float32 and torch.float64"
        )
    if place.shape != (2, epsilon.numel()):
        raise ValueError(
            f"crrelu_at: place has shape {tuple(place.shape)}; allowed is (2, {epsilon.numel()}), "
            "location and scale for each value of epsilon"
        )
    if place.device != input.device:
        raise RuntimeError(
            f"crrelu_at: place is on {place.device} but input is on {input.device}; both must be "
            "on the same device"
        )
    if place.requires_grad:
        raise RuntimeError("crrelu_at: place requires grad, but has no derivative; detach it")


def crrelu_glu(gate: Tensor, up: Tensor, epsilon: Tensor, *, channel_dim: int = 1) -> Tensor:
    """CRReLU(gate) · up, composed; arguments, result and errors as :func:`crrelu_ext.crrelu_glu`.

    16-bit types are computed in float32 and rounded once.
    """
    if is_jagged(gate) or is_jagged(up):
        return on_values(_crrelu_glu, "crrelu_glu", (gate, up), epsilon, channel_dim)
    return _crrelu_glu(gate, up, epsilon, channel_dim)


def _crrelu_glu(gate: Tensor, up: Tensor, epsilon: Tensor, channel_dim: int) -> Tensor:
    check_arguments(gate, epsilon, channel_dim, op="crrelu_glu", name="gate")
    _check_dense("crrelu_glu", "up", up)
    if up.shape != gate.shape:
        raise ValueError(
            f"crrelu_glu: up has shape {tuple(up.shape)}; allowed is that of gate, "
            f"{tuple(gate.shape)}"
        )
    if up.dtype != gate.dtype:
        raise TypeError(
            f"crrelu_glu: up has dtype {up.dtype}; allowed is that of gate, {gate.dtype}"
        )
    if up.device != gate.device:
        raise RuntimeError(
            f"crrelu_glu: up is on {up.device}; allowed is the device of gate, {gate.device}"
        )
    return (_value(gate, epsilon, channel_dim) * up).to(gate.dtype)


def tabulated(input: Tensor, table: Tensor) -> Tensor:
    """Cubics between a table's knots, composed; all as :func:`crrelu_ext.functional.tabulated`."""
    if is_jagged(input):
        return on_values(_tabulated, "tabulated", (input,), table)
    return _tabulated(input, table)


def _tabulated(input: Tensor, table: Tensor) -> Tensor:
    check_table_arguments(input, table)
    x = input.to(_dtype_of(input))
    places, values, slopes = table.to(x.dtype)
    intervals = table.shape[1] - 1
    width = (places[-1] - places[0]) / intervals
    near = x.clamp(places[0], places[-1])
    t = (near - places[0]) / width
    left = t.detach().nan_to_num(0).floor().clamp(0, intervals - 1).long()
    u = t - left

    def pick(row: Tensor, knot: Tensor) -> Tensor:
        return row.index_select(0, knot.flatten()).view_as(knot)

    value, rise = pick(values, left), pick(values.diff(), left)
    first, last = pick(slopes, left) * width, pick(slopes, left + 1) * width
    second, third = 3 * rise - 2 * first - last, first + last - 2 * rise
    slope = (first + u * (2 * second + 3 * u * third)) / width
    beyond = (x - near).masked_fill(slope == 0, 0)  # where inf · 0 must not arise
    return (value + u * (first + u * (second + u * third)) + slope * beyond).to(input.dtype)


def check_table_arguments(input: Tensor, table: Tensor) -> None:
    """Raises an error that names the argument unless ``tabulated`` is defined on these."""
    _check_dense("tabulated", "input", input)
    _check_dense("tabulated", "table", table)
    if input.dtype not in DTYPES:
        raise TypeError(f"tabulated: input has dtype {input.dtype}; allowed are {DTYPES}")
    if table.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"tabulated: table has dtype {table.dtype}; allowed are torch.float32 and torch.float64"
        )
    if table.dim() != 2 or table.shape[0] != 3 or table.shape[1] < 2:
        raise ValueError(
            f"tabulated: table has shape {tuple(table.shape)}; allowed is (3, knots), with at "
            "least 2 knots"
        )
    if table.device != input.device:
        raise RuntimeError(
            f"tabulated: table is on {table.device} but input is on {input.device}; both must be "
            "on the same device"
        )
    if table.requires_grad:
        raise RuntimeError("tabulated: table requires grad, but has no derivative; detach it")


def _check_dense(op: str, argument: str, tensor: object) -> None:
    """Raises an error that names the argument unless it is a dense tensor."""
    if not isinstance(tensor, Tensor):
        given = type(tensor).__name__
        raise TypeError(f"{op}: {argument} has type {given}; allowed is a torch.Tensor")
    check_not_nested(op, argument, tensor)
    if tensor.layout != torch.strided:
        raise ValueError(f"{op}: {argument} has layout {tensor.layout}; allowed is torch.strided")


def _dtype_of(input: Tensor) -> torch.dtype:
    """The dtype that an input is computed in."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _value(input: Tensor, epsilon: Tensor, channel_dim: int, place: Tensor | None = None) -> Tensor:
    """CRReLU in the dtype it is computed in, its bump at 0 or at a place."""
    dtype = _dtype_of(input)
    x = input.to(dtype)
    shape = [1] * x.dim()
    if epsilon.numel() != 1:
        shape[channel_dim] = epsilon.numel()
    u, height = x, epsilon.to(dtype).reshape(shape)
    if place is not None:
        location, scale = place.to(dtype).reshape([2, *shape])
        u, height = (x - location) / scale, height * scale
    if rows := _rows(x, epsilon):
        height = height.expand(*x.shape[:rows], *[-1] * (x.dim() - rows))
    near = u.masked_fill(u.abs() > _FAR[dtype], 0)  # NaN stays, also when this is differentiated
    return torch.relu(x) + height * (near * torch.exp(near * near * -0.5))


def _rows(x: Tensor, epsilon: Tensor) -> int:
    """Leading dimensions that epsilon is expanded over before it meets the input.

    Its gradient is then summed within these first. On a GPU Inductor does that in the kernel of
    the input's gradient, while it cuts a sum over all elements into pieces of its own, for which
    it mostly reads everything a second time. On a CPU one kernel sums it all.
    """
    if x.is_cpu:
        return 0
    return min(2 if epsilon.numel() == 1 else 1, max(x.dim() - 1, 0))


def check_arguments(
    input: Tensor, epsilon: Tensor, channel_dim: int, *, op: str = "crrelu", name: str = "input"
) -> None:
    """Raises an error that names the argument unless the operator is defined on these."""
    _check_dense(op, name, input)
    _check_dense(op, "epsilon", epsilon)
    if not isinstance(channel_dim, int):
        given = type(channel_dim).__name__
        raise TypeError(f"{op}: channel_dim has type {given}; allowed is an int")
    if input.dtype not in DTYPES:
        raise TypeError(f"{op}: {name} has dtype {input.dtype}; allowed are {DTYPES}")
    if epsilon.dtype not in (torch.float32, input.dtype):
        allowed = "is that" if input.dtype == torch.float32 else "are torch.float32 and that"
        raise TypeError(
            f"{op}: epsilon has dtype {epsilon.dtype}; allowed {allowed} of {name}, {input.dtype}"
        )
    if epsilon.device != input.device:
        raise RuntimeError(
            f"{op}: epsilon is on {epsilon.device} but {name} is on {input.device}; both must be "
            "on the same device"
        )
    if epsilon.dim() != 1:
        raise ValueError(
            f"{op}: epsilon has shape {tuple(epsilon.shape)}; allowed are (1,) and (C,), C the "
            f"size of {name} along channel_dim"
        )
    if epsilon.numel() == 1:
        return
    if not -input.dim() <= channel_dim < input.dim():
        dimensions = "1 dimension" if input.dim() == 1 else f"{input.dim()} dimensions"
        raise IndexError(
            f"{op}: channel_dim is {channel_dim}, but {name} has {dimensions}; "
            f"an epsilon of {epsilon.numel()} values lies along that dimension of {name}"
        )
    if input.shape[channel_dim] != epsilon.numel():
        raise ValueError(
            f"{op}: epsilon has {epsilon.numel()} values, but {name} has size "
            f"{input.shape[channel_dim]} along channel_dim {channel_dim}; allowed are that many "
            "or 1"
        )
