"""DerivedActivation and the tabulated kernels, against scipy's Hermite splines in float64."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import CubicHermiteSpline
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Normal
from torch.nn import functional as F
from torch.testing import assert_close

import crrelu_ext
from crrelu_ext import DerivedActivation, DynamicActivation, eafo, reference
from crrelu_ext.derived import monotone_slopes, tabulate
from crrelu_ext.functional import tabulated

KNOTS = [2, 3, 17, 31, 32, 33, 34, 256]
"""AVX-512 keeps 32 intervals in registers; more are read from memory."""
ROUNDING = {
    torch.float32: 2**-22,
    torch.float64: 2**-50,
    torch.bfloat16: 2**-8,
    torch.float16: 2**-11,
}
FUNCTIONS: list[Callable[[Tensor], Tensor]] = [F.softplus, torch.tanh, F.silu, torch.sin]


def module(f: Callable[[Tensor], Tensor], knots: int, dtype: torch.dtype) -> DerivedActivation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few knots are meant
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return DerivedActivation(f, lower=-5.0, upper=7.0, knots=knots, dtype=wide)


def oracle(table: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The value and the slope in float64, by scipy."""
    places, values, slopes = table.double().cpu().numpy()
    places = np.linspace(places[0], places[-1], len(places))  # float32 ones are not equally spaced
    spline = CubicHermiteSpline(places, values, slopes)
    near = x.detach().double().cpu().clamp(places[0], places[-1])
    value, slope = (torch.from_numpy(spline(near.numpy(), order)) for order in (0, 1))
    beyond = x.detach().double().cpu() - near
    return value + (slope * beyond).where(slope != 0, 0.0), slope


def points(numel: int, dtype: torch.dtype) -> Tensor:
    """Most of them between the ends of the tables, some beyond."""
    return (torch.randn(numel, dtype=torch.float64) * 3).to(dtype)


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("knots", KNOTS)
def test_accuracy(
    device: str, dtype: torch.dtype, f: Callable[[Tensor], Tensor], knots: int
) -> None:
    act = module(f, knots, dtype).to(device)
    x = points(4099, dtype).to(device).requires_grad_()
    grad_output = torch.randn_like(x)
    output = act(x)
    (grad,) = torch.autograd.grad(output, x, grad_output)
    value, slope = oracle(act.table, x)
    far = x.detach().cpu().double().abs() + 12  # what a place is rounded by
    size = value.abs() + slope.abs() * far + 4  # and the coefficients
    assert ((output.detach().cpu().double() - value).abs() <= ROUNDING[dtype] * size).all()
    expected = slope * grad_output.cpu().double()
    # By f'' and what a place is rounded by; and by the rounding of values up to 8, differentiated.
    size = expected.abs() + grad_output.cpu().double().abs() * (12 + 8 * knots / 12)
    assert ((grad.cpu().double() - expected).abs() <= ROUNDING[dtype] * size).all()


@pytest.mark.parametrize("knots", [32, 256])
def test_all_numbers_of_16_bits(device: str, knots: int) -> None:
    act = module(F.softplus, knots, torch.float32).to(device)
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        x = bits.view(dtype)
        x = x[x.isfinite()].to(device)
        value, _ = oracle(act.table, x)
        nearest = value.to(dtype)
        result = act(x).cpu()
        neighbours = [(nearest.view(torch.int16) + step).view(dtype) for step in (-1, 0, 1)]
        assert torch.stack([result == number for number in neighbours]).any(0).all()


def plus_zero(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f, with a graph even if it is constant."""
    return f(x) + 0 * x


def test_the_limits(device: str, dtype: torch.dtype) -> None:
    inf, nan = math.inf, math.nan
    x = torch.tensor([inf, -inf, nan], dtype=dtype, device=device).repeat(7).requires_grad_()
    for f, limits in ((F.softplus, (inf, -inf)), (torch.ones_like, (1, 1))):
        act = module(partial(plus_zero, f), 32, dtype).to(device)
        for function in (tabulated, reference.tabulated):
            output = function(x, act.table)
            expected = torch.tensor([*limits, nan], dtype=dtype, device=device).repeat(7)
            assert_close(output, expected, equal_nan=True)
            (grad,) = torch.autograd.grad(output.sum(), x)
            _, slope = oracle(act.table, torch.tensor([8.0, -8.0]))
            assert_close(grad[:2].cpu().double(), slope, rtol=1e-2, atol=0)


@pytest.mark.parametrize("far", [0, 1e2, 1e3, 1e4, 1e6, -1e4])
def test_narrow_tables_far_away(device: str, far: float) -> None:
    """Where rounding moves the middle, and the place in the table, nothing beyond it is read."""
    generator = torch.Generator().manual_seed(0)
    for knots in range(2, 40):
        lower = far + torch.rand((), generator=generator).item()
        upper = lower + (1e-6 * abs(far) + 1) * (0.1 + torch.rand((), generator=generator).item())
        places = torch.linspace(lower, upper, knots)
        table = torch.stack([places, torch.full_like(places, 5.0), torch.zeros_like(places)])
        ends = places[[0, -1]][:, None].expand(2, 64)
        within = torch.linspace(places[0], places[-1], 64 * 64).view(-1, 64)
        x = torch.cat([ends, within]).to(device).requires_grad_()
        output = tabulated(x, table.to(device))
        assert (output == 5).all()
        (slope,) = torch.autograd.grad(output.sum(), x)
        assert (slope == 0).all()


@pytest.mark.parametrize("numel", [0, 1, 5, 63, 64, 65, 127, 300, 16384 + 3, 40_000])
def test_no_result_depends_on_position(device: str, dtype: torch.dtype, numel: int) -> None:
    """Sizes and offsets that end in every kind of tail; a far element takes the other path."""
    act = module(torch.tanh, 32, dtype).to(device)
    buffer = points(numel + 9, dtype).to(device)
    one_by_one = torch.cat([act(x) for x in buffer[:80].split(1)])
    for offset in (0, 1, 3, 8):
        x = buffer[offset : offset + numel]
        assert torch.equal(act(x)[:64], one_by_one[offset : offset + numel][:64])
        near = x.clamp(-4, 6)
        far = torch.cat([near, torch.full_like(buffer[:1], 100)])
        assert torch.equal(act(near), act(far)[:-1])


def test_any_strides(device: str) -> None:
    act = module(F.silu, 32, torch.float32).to(device)
    x = torch.randn(4, 6, 5, 3, device=device)
    for view in (
        x,
        x[:, ::2],
        x.permute(0, 2, 3, 1),
        x.contiguous(memory_format=torch.channels_last),
    ):
        assert_close(act(view), act(view.contiguous()), rtol=0, atol=0)
    assert act(x.contiguous(memory_format=torch.channels_last)).is_contiguous(
        memory_format=torch.channels_last
    )
    assert act(x[0, 0, 0, 0]).shape == ()
    assert_close(act(x[:1].expand(3, -1, -1, -1))[2], act(x[0]))


def test_derivatives(device: str) -> None:
    act = module(torch.sin, 32, torch.float64).to(device)
    x = torch.linspace(-7, 9, 23, dtype=torch.float64, device=device, requires_grad=True)
    for function in (act, lambda x: reference.tabulated(x, act.table)):
        gradcheck(function, (x,), check_forward_ad=True, check_batched_grad=True)
        gradgradcheck(function, (x,))


def test_transforms(device: str) -> None:
    act = module(F.silu, 32, torch.float64).to(device)
    x = torch.linspace(-4, 4, 12, dtype=torch.float64, device=device).reshape(3, 4)
    assert_close(torch.func.vmap(act)(x), act(x))
    assert_close(torch.func.vmap(act, in_dims=1, out_dims=1)(x), act(x))
    tables = torch.stack([act.table, act.table + act.table * 0.5])
    both = torch.func.vmap(tabulated, in_dims=(None, 0))(x, tables)
    assert_close(both, torch.stack([tabulated(x, table) for table in tables]))
    slope = torch.func.vmap(torch.func.grad(act))(x.flatten())
    assert_close(
        slope, torch.func.jvp(act, (x.flatten(),), (torch.ones(12).double().to(device),))[1]
    )
    hessian = torch.func.hessian(lambda x: act(x).sum())(x.flatten())
    assert_close(hessian, torch.diag(hessian.diag()))


def test_opcheck(device: str) -> None:
    table = module(F.silu, 8, torch.float32).table.to(device)
    x = torch.randn(3, 4, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.crrelu_ext.tabulated.default, (x, table))
    torch.library.opcheck(
        torch.ops.crrelu_ext.tabulated_backward.default, (x.detach(), x.detach(), table)
    )


def test_compiled_and_a_table_that_is_replaced(device: str) -> None:
    act = module(F.silu, 32, torch.float32).to(device)
    other = module(torch.tanh, 32, torch.float32)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled = torch.compile(lambda x: act(x * 2) * 3, fullgraph=True, backend=counter)
    x = torch.randn(50, device=device, requires_grad=True)
    for table in (act.table.clone(), other.table):
        act.table.copy_(table)
        output, expected = compiled(x), act(x * 2) * 3
        assert_close(output, expected)
        assert_close(torch.autograd.grad(output.sum(), x), torch.autograd.grad(expected.sum(), x))
    assert counter.frame_count == 1


def test_nested_tensors(device: str) -> None:
    act = module(F.silu, 32, torch.float32).to(device)
    parts = [torch.randn(n, 3, device=device) for n in (2, 5)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    for part, result in zip(parts, act(nested).unbind(), strict=True):
        assert torch.equal(result, act(part))


def test_only_the_input_and_the_table_are_kept() -> None:
    act, kept = module(F.silu, 32, torch.float32), []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        act(x)
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr(), act.table.data_ptr()]


def test_error_is_measured_and_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fine = DerivedActivation(F.softplus, lower=-8, upper=8, knots=32)
    with pytest.warns(UserWarning, match="5 knots between -8 and 8 miss the activation by up to"):
        coarse = DerivedActivation(F.softplus, lower=-8, upper=8, knots=5)
    x = torch.linspace(-8, 8, 10_001, dtype=torch.float64)
    for act in (fine, coarse):
        error = (act.double()(x) - F.softplus(x)).abs().max().item()
        assert 0.9 * error <= act.error.item() <= 1.1 * error + 1e-6


def test_from_derivation_to_kernel() -> None:
    density = Normal(0.5, 2.0)
    result = eafo.improve(F.softplus, density, steps=2)
    act = DerivedActivation(result.activation, lower=-15.5, upper=16.5)
    x = density.sample((5000,))
    scale = getattr(result.activation, "scale")  # noqa: B009 - the type of a callable has none
    assert act.error.item() < 1e-3 * scale
    assert (act(x) - result.activation(x)).abs().max() < 1.1 * act.error + 1e-5


@given(
    st.lists(st.floats(0, 10), min_size=2, max_size=40),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_monotone_functions_make_monotone_tables(rises: list[float], slope: float) -> None:
    """Of an increasing function, however rough, comes an increasing cubic."""
    knots = len(rises) + 1
    heights = np.concatenate([[0.0], np.cumsum(rises)])

    def stairs(x: Tensor) -> Tensor:
        at = torch.from_numpy(np.interp(x.detach().numpy(), np.arange(knots), heights))
        return at + 5 * slope * (x - x.detach())  # with a slope that has nothing to do with it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        act = DerivedActivation(stairs, lower=0, upper=knots - 1, knots=knots, dtype=torch.float64)
    x = torch.linspace(-1, knots, 50 * knots, dtype=torch.float64)
    assert (act(x).diff() >= -1e-12 * max(1.0, heights[-1])).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_nothing_is_recorded(dtype: torch.dtype) -> None:
    with torch.inference_mode():
        act = DerivedActivation(F.softplus, lower=-8, upper=8, dtype=dtype)
    other = DerivedActivation(F.softplus, lower=-8, upper=8, dtype=dtype)
    assert torch.equal(act.table, other.table)
    x = torch.linspace(-3, 3, 9, dtype=dtype, requires_grad=True)
    assert_close(torch.autograd.grad(act(x).sum(), x), torch.autograd.grad(other(x).sum(), x))
    with torch.inference_mode():
        act = DerivedActivation(F.softplus, lower=-8, upper=8, dtype=dtype, device="meta")
    assert not any(buffer.is_inference() for buffer in act.buffers())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_modules() -> None:
    act = DerivedActivation(torch.jit.script(torch.nn.SiLU()), lower=-6, upper=6)
    assert torch.equal(act.table, DerivedActivation(F.silu, lower=-6, upper=6).table)


EPSILON = torch.nn.Parameter(torch.tensor([0.3]))


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        (torch.nn.SiLU(inplace=True), F.silu),
        (torch.nn.PReLU(init=0.5), lambda x: F.leaky_relu(x, 0.5)),
        (lambda x: x.relu_() + EPSILON * x, lambda x: 1.3 * x.relu()),
    ],
)
def test_activations_in_place_or_with_parameters(
    activation: Callable[[Tensor], Tensor], function: Callable[[Tensor], Tensor]
) -> None:
    table, error = tabulate(activation, -8, 8, np.int64(33))  # type: ignore[arg-type]
    expected, expected_error = tabulate(function, -8, 8, 33)
    assert_close(table, expected, rtol=1e-6, atol=0)
    assert error == pytest.approx(expected_error, rel=1e-3, abs=1e-12)


def test_a_scale_that_is_no_number_is_not_taken() -> None:
    class Scaled:
        def __init__(self, scale: object) -> None:
            self.scale = scale

        def __call__(self, x: Tensor) -> Tensor:
            return F.softplus(x)

    for scale, warns in ((1e-6, True), (None, False), (torch.ones(3), False)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            DerivedActivation(Scaled(scale), lower=-8, upper=8)
        assert bool(caught) == warns


@pytest.mark.parametrize(
    "make", [DynamicActivation, partial(DerivedActivation, F.silu, lower=-8, upper=8)]
)
def test_meta_device(make: Callable[..., DerivedActivation]) -> None:
    with torch.device("meta"):
        implied = make()
    for act in (implied, make(device="meta")):
        assert {tensor.device.type for tensor in act.state_dict().values()} == {"meta"}
        act.to_empty(device="cpu").load_state_dict(make().state_dict())
        x = torch.linspace(-9, 9, 50)
        assert torch.equal(act(x), make()(x))


def test_copies_and_state() -> None:
    act, other = module(F.silu, 32, torch.float32), module(torch.tanh, 32, torch.float32)
    x = torch.randn(100)
    for copied in (copy.deepcopy(act), pickle.loads(pickle.dumps(act))):
        assert torch.equal(copied(x), act(x))
    other.load_state_dict(act.state_dict())
    assert torch.equal(other(x), act(x))
    assert other.error == act.error
    assert not list(act.parameters())


def test_dtypes_of_the_table() -> None:
    act = module(F.silu, 32, torch.float32)
    table = act.table.clone()
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), act).bfloat16()
    assert act.table.dtype == torch.float32
    assert torch.equal(act.table, table)
    assert model(torch.randn(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert act.double().table.dtype == torch.float64
    assert act.to("meta")(torch.empty(4, device="meta")).shape == (4,)


@pytest.mark.parametrize("function", [F.gelu, F.silu, F.mish, torch.cos, torch.sin])
def test_functions_that_turn_wherever_the_knots_lie(function: Callable[[Tensor], Tensor]) -> None:
    """A cubic with the function's values and slopes misses it by M h⁴/384, M its fourth slope."""
    for knots in range(20, 90):
        _, missed = tabulate(function, -6, 6, knots)
        assert missed <= 2 * (12 / (knots - 1)) ** 4 / 384


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"lower": 1, "upper": 1}, ValueError, "lower is 1 and upper 1; allowed are finite"),
        ({"lower": -math.inf}, ValueError, "lower is -inf"),
        ({"lower": "a"}, TypeError, "lower is 'a'; allowed is a number"),
        ({"lower": 7.9999999}, ValueError, "lower is 7.9999999 and upper 8; allowed are bounds b"),
        ({"upper": 1e39}, ValueError, "finite with their values, in torch.float32"),
        ({"knots": 1}, ValueError, "knots is 1; allowed are whole numbers from 2 on"),
        ({"knots": 8.5}, ValueError, "knots is 8.5"),
        ({"dtype": torch.float16}, TypeError, "dtype is torch.float16; allowed are"),
        ({"activation": torch.log}, ValueError, "not finite at x = -8"),
        ({"activation": torch.sum}, ValueError, r"made shape \(\) of \(497,\)"),
        ({"activation": lambda x: x.softmax(0)}, ValueError, "activation is not elementwise"),
        ({"activation": lambda x: x.sort().values}, ValueError, "activation is not elementwise"),
        ({"activation": lambda x: 3}, TypeError, "result has type int"),
        ({"activation": "softplus"}, TypeError, "activation has type str; allowed is a callable"),
        ({"activation": lambda x: x.detach()}, ValueError, "does not depend on its input, as far"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        DerivedActivation(**{"activation": F.silu, "lower": -8, "upper": 8, **arguments})


@pytest.mark.parametrize("function", [tabulated, reference.tabulated])
def test_bad_calls(function: Callable[..., Tensor]) -> None:
    x, table = torch.randn(3), module(F.silu, 8, torch.float32).table
    cases: list[tuple[Any, Any, type[Exception], str]] = [
        (x.long(), table, TypeError, "input has dtype .*int64"),
        (x.to_sparse(), table, ValueError, "input has layout .*[sS]parse"),
        ([1.0], table, TypeError, "input has type list"),
        (x, 3.0, TypeError, "table has type float"),
        (x, table.half(), TypeError, "table has dtype .*float16"),
        (x, table[:2], ValueError, r"table has shape [\(\[]2, 8[\)\]]; allowed is \(3, knots\)"),
        (x, table[:, :1], ValueError, "table has shape"),
        (x, table.to("meta"), RuntimeError, "table is on meta but input is on cpu"),
        (x, table.clone().requires_grad_(), RuntimeError, "table requires grad"),
    ]
    for input, knots, error, match in cases:
        with pytest.raises(error, match=match):
            function(input, knots)


def test_build_without_kernels_agrees(device: str, dtype: torch.dtype) -> None:
    """The fallback, beside the kernels."""
    act = module(F.softplus, 32, dtype).to(device)
    x = points(500, dtype).to(device)
    rounding = 4 * ROUNDING[dtype]
    assert_close(act(x), reference.tabulated(x, act.table), rtol=rounding, atol=2 * rounding)
    assert crrelu_ext.build_info()["native"]


def test_which_slopes_are_cut_down() -> None:
    def cut(values: list[float], slopes: list[float]) -> list[float]:
        at_knots, slopes_there = torch.tensor([values, slopes], dtype=torch.float64)
        return monotone_slopes(at_knots, slopes_there, 1.0).tolist()

    # A spike between two knots, but the rises on both sides agree: no turn.
    assert cut([0, 1, 2, 3], [1, 10, -10, 1]) == [1, 3, -3, 1]
    # The rises differ in sign, the slopes at the ends do not: no turn either.
    assert cut([0, 1, 1.1, 0], [1, 1, 1, -1])[1:3] == pytest.approx([0.3, 0.3])
    # Turns in the first and in the last interval.
    assert cut([0, 0.01, 2], [-1, 1, 3])[0] == -1
    assert cut([2, 0.01, 0], [-3, -1, 1])[2] == 1


def test_what_float32_cannot_hold() -> None:
    with (
        pytest.warns(UserWarning, match="miss the activation"),
        pytest.raises(ValueError, match="finite with their values"),
    ):
        DerivedActivation(lambda x: 1e39 * x, lower=-8, upper=8)


def test_a_table_stays_float32() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        act = DerivedActivation(F.softplus, lower=-8, upper=8)
    finally:
        torch.set_default_dtype(torch.float32)
    error = act.error.clone()
    act.bfloat16()
    assert act.table.dtype == act.error.dtype == torch.float32
    assert torch.equal(act.error, error)
