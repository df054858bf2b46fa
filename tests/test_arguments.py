"""Arguments that are not allowed, and where results are written: out= and in place."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import crrelu_ext
from crrelu_ext import _ops, functional, reference

INPUT = torch.tensor([[-1.5, 0.5, 2.0], [0.0, 3.0, -0.25]])
EPSILON = torch.tensor([0.5])


def without_native_library() -> ModuleType:
    """crrelu_ext.functional as it is in an installation without kernels."""
    spec = importlib.util.find_spec("crrelu_ext.functional")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ops, "_C", None)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["native", "fallback"])
def api(request: pytest.FixtureRequest) -> ModuleType:
    return functional if request.param == "native" else without_native_library()


@pytest.fixture(
    params=[
        "crrelu",
        "out",
        "in_place",
        "fallback",
        "fallback_out",
        "fallback_in_place",
        "reference",
    ]
)
def call(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    """Every way to call CRReLU."""
    if request.param == "reference":
        return reference.crrelu
    module = without_native_library() if request.param.startswith("fallback") else functional
    if request.param.endswith("in_place"):
        return module.crrelu_
    if not request.param.endswith("out"):
        return module.crrelu

    def with_out(input: Any, epsilon: Any, **options: Any) -> Tensor:
        return module.crrelu(input, epsilon, out=torch.empty(0), **options)

    return with_out


def quantized(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.quint8)


class Unchanged:
    """Notices whether tensors were written to, or their shapes changed, within a `with` block."""

    def __init__(self, *candidates: object) -> None:
        self.tensors = [c for c in candidates if isinstance(c, Tensor)]

    def state(self) -> list[tuple[object, ...]]:
        return [(t.shape, t.dtype, t._version) for t in self.tensors]

    def __enter__(self) -> None:
        self.before = self.state()

    def __exit__(self, *exception: object) -> None:
        assert self.state() == self.before


# given argument; the error; what the message has to say, beside the argument's name
NOT_A_TENSOR: dict[str, tuple[Any, str]] = {
    "list": ([1.0, 2.0], "list"),
    "number": (0.01, "float"),
    "None": (None, "NoneType"),
    "numpy": (np.ones(1, dtype=np.float32), "ndarray"),
    "string": ("x", "str"),
}
DTYPES = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)


@pytest.mark.parametrize("argument", ["input", "epsilon"])
@pytest.mark.parametrize("given", NOT_A_TENSOR)
def test_not_a_tensor(call: Callable[..., Tensor], given: str, argument: str) -> None:
    value, name = NOT_A_TENSOR[given]
    arguments = {"input": INPUT.clone(), "epsilon": EPSILON} | {argument: value}
    with Unchanged(*arguments.values()), pytest.raises(TypeError) as raised:
        call(**arguments)
    for part in (argument, name, "torch.Tensor"):
        assert part in str(raised.value)


@pytest.mark.parametrize("given", DTYPES, ids=str)
def test_dtype_of_input(call: Callable[..., Tensor], given: torch.dtype) -> None:
    input = INPUT.to(given)
    with Unchanged(input), pytest.raises(TypeError) as raised:
        call(input, EPSILON)
    name = str(given).removeprefix("torch.")
    for part in ("input", name, "float32", "float64", "bfloat16", "float16"):
        assert part in str(raised.value)


@pytest.mark.parametrize("given", [*DTYPES, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dtype_of_epsilon(
    call: Callable[..., Tensor], given: torch.dtype, input_dtype: torch.dtype
) -> None:
    input = INPUT.to(input_dtype)
    with Unchanged(input), pytest.raises(TypeError) as raised:
        call(input, EPSILON.to(given))
    given_name, input_name = (str(dtype).removeprefix("torch.") for dtype in (given, input_dtype))
    message = str(raised.value).replace("torch.", "")
    allowed = "is" if input_dtype == torch.float32 else "are float32 and"
    assert f"epsilon has dtype {given_name}; " in message
    assert message.endswith(f"; allowed {allowed} that of input, {input_name}")


@pytest.mark.filterwarnings("ignore")  # torch's own, of sparse and quantized tensors
@pytest.mark.parametrize("argument", ["input", "epsilon"])
@pytest.mark.parametrize("kind", ["sparse", "csr", "mkldnn", "quantized"])
def test_layout(call: Callable[..., Tensor], kind: str, argument: str) -> None:
    convert: dict[str, Callable[[Tensor], Tensor]] = {
        "sparse": Tensor.to_sparse,
        "csr": lambda tensor: tensor.reshape(-1, 1).to_sparse_csr(),
        "mkldnn": lambda tensor: tensor.to_mkldnn(),
        "quantized": quantized,
    }
    arguments = {"input": INPUT.clone(), "epsilon": EPSILON}
    arguments[argument] = convert[kind](arguments[argument])
    with pytest.raises((ValueError, TypeError)) as raised:
        call(**arguments)
    given = {"sparse": "sparse", "csr": "csr", "mkldnn": "mkldnn", "quantized": "quint8"}[kind]
    message = str(raised.value).lower()
    assert argument in message
    assert given in message
    assert ("float32" if kind == "quantized" else "strided") in message


@pytest.mark.parametrize("argument", ["input", "epsilon"])
def test_device(call: Callable[..., Tensor], argument: str) -> None:
    arguments = {"input": INPUT.clone(), "epsilon": EPSILON}
    arguments[argument] = arguments[argument].to("meta")
    with Unchanged(*arguments.values()), pytest.raises(RuntimeError) as raised:
        call(**arguments)
    for part in ("epsilon", "input", "meta", "cpu", "same device"):
        assert part in str(raised.value)


@pytest.mark.parametrize("shape", [(), (1, 1), (3, 1), (1, 3)])
def test_shape_of_epsilon(call: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    input = INPUT.clone()
    with Unchanged(input), pytest.raises(ValueError, match="epsilon") as raised:
        call(input, torch.ones(shape))
    numbers = ", ".join(map(str, shape))
    assert f"[{numbers}]" in str(raised.value) or f"({numbers})" in str(raised.value)
    for part in ("(1,)", "(C,)", "channel_dim"):
        assert part in str(raised.value)


@pytest.mark.parametrize("channels", [0, 2, 4])
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_length_of_epsilon(call: Callable[..., Tensor], channels: int, channel_dim: int) -> None:
    input = INPUT.clone()
    with Unchanged(input), pytest.raises(ValueError, match="epsilon") as raised:
        call(input, torch.ones(channels), channel_dim=channel_dim)
    for part in (f"{channels} values", "size 3", f"channel_dim {channel_dim}", "or 1"):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("shape", "channel_dim"),
    [((2, 3), 2), ((2, 3), -3), ((3,), 1), ((3,), -2), ((), 0), ((), -1), ((2, 3), 2**40)],
)
def test_channel_dim_out_of_range(
    call: Callable[..., Tensor], shape: tuple[int, ...], channel_dim: int
) -> None:
    input = torch.ones(shape)
    with Unchanged(input), pytest.raises(IndexError) as raised:
        call(input, torch.ones(3), channel_dim=channel_dim)
    dimensions = f"{len(shape)} dimension{'' if len(shape) == 1 else 's'};"
    for part in (f"channel_dim is {channel_dim}", dimensions, "3 values"):
        assert part in str(raised.value)


def test_default_channel_dim_of_a_vector(call: Callable[..., Tensor]) -> None:
    with pytest.raises(IndexError, match="channel_dim is 1, but input has 1 dimension"):
        call(torch.ones(3), torch.ones(3))


@pytest.mark.parametrize("channel_dim", [1.0, None, "1", torch.tensor([0, 1])], ids=repr)
def test_channel_dim_that_is_no_integer(call: Callable[..., Tensor], channel_dim: object) -> None:
    input = INPUT.clone()
    with Unchanged(input), pytest.raises(TypeError, match="channel_dim") as raised:
        call(input, torch.ones(3), channel_dim=channel_dim)
    assert type(channel_dim).__name__ in str(raised.value)
    assert "int" in str(raised.value)


@pytest.mark.parametrize("channel_dim", [5, -4])
def test_channel_dim_does_not_matter_to_one_epsilon(
    call: Callable[..., Tensor], channel_dim: int
) -> None:
    expected = reference.crrelu(INPUT, EPSILON)
    torch.testing.assert_close(call(INPUT.clone(), EPSILON, channel_dim=channel_dim), expected)


def test_gradients_with_other_shapes_or_dtypes(device: str) -> None:
    input = torch.randn(3, 2, device=device, requires_grad=True)
    output = crrelu_ext.crrelu(input, torch.ones(1, device=device))
    with pytest.raises(RuntimeError, match="shape"):
        output.backward(torch.ones(2, 3, device=device))


@pytest.mark.parametrize(
    ("grad_output", "error", "parts"),
    [
        (torch.ones(3, 2), ValueError, ("[3, 2]", "[2, 3]")),
        (torch.ones(2, 3, dtype=torch.float64), TypeError, ("float64", "float32")),
        (torch.ones(2, 3, device="meta"), RuntimeError, ("meta", "cpu")),
    ],
)
def test_grad_output_of_the_backward_operator(
    grad_output: Tensor, error: type[Exception], parts: tuple[str, ...]
) -> None:
    with pytest.raises(error, match="grad_output") as raised:
        torch.ops.crrelu_ext.crrelu_backward(grad_output, INPUT, EPSILON, 1, [True, True])
    for part in parts:
        assert part in str(raised.value)


# out=


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.view(torch.int32), b.view(torch.int32))


def test_out_is_written_and_returned(api: ModuleType, device: str) -> None:
    input, epsilon = INPUT.to(device), EPSILON.to(device)
    expected = api.crrelu(input, epsilon)
    out = torch.full_like(input, 7)
    assert api.crrelu(input, epsilon, out=out) is out
    assert same_bits(out, expected)
    assert api.crrelu(input, epsilon, out=input) is input
    assert same_bits(input, expected)


def test_out_without_elements_is_resized(api: ModuleType, recwarn: pytest.WarningsRecorder) -> None:
    out = torch.empty(0)
    api.crrelu(INPUT, EPSILON, out=out)
    assert same_bits(out, api.crrelu(INPUT, EPSILON))
    assert not recwarn


@pytest.mark.parametrize("shape", [(5,), (50,), (6,), (3, 2), (1,)])
def test_out_of_another_shape_is_resized_with_a_warning(
    api: ModuleType, shape: tuple[int, ...]
) -> None:
    out = torch.empty(shape)
    with pytest.warns(UserWarning, match="An output with one or more elements was resized"):
        api.crrelu(INPUT, EPSILON, out=out)
    assert same_bits(out, api.crrelu(INPUT, EPSILON))


@pytest.mark.parametrize("input_dtype", reference.DTYPES, ids=str)
@pytest.mark.parametrize("out_dtype", [*reference.DTYPES, torch.complex64], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_out_is_cast_to(
    api: ModuleType, input_dtype: torch.dtype, out_dtype: torch.dtype, channels: int
) -> None:
    input, epsilon = INPUT.to(input_dtype), EPSILON.repeat(channels)
    out = torch.empty(2, 3, dtype=out_dtype)
    api.crrelu(input, epsilon, out=out)
    assert torch.equal(out, api.crrelu(input, epsilon).to(out_dtype))


@pytest.mark.parametrize("out_dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_out_that_a_result_cannot_be_cast_to(api: ModuleType, out_dtype: torch.dtype) -> None:
    out = torch.ones(2, 3).to(out_dtype)
    with Unchanged(out), pytest.raises((TypeError, RuntimeError), match="can't be cast"):
        api.crrelu(INPUT, EPSILON, out=out)


@pytest.mark.parametrize("out_dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_native_message_names_outs_dtype(out_dtype: torch.dtype) -> None:
    with pytest.raises(TypeError) as raised:
        crrelu_ext.crrelu(INPUT, EPSILON, out=torch.ones(2, 3).to(out_dtype))
    for part in ("out", str(out_dtype).removeprefix("torch."), "float32"):
        assert part in str(raised.value)


def test_out_of_other_strides(api: ModuleType, device: str, dtype: torch.dtype) -> None:
    """out keeps its strides, whatever they are, and what lies in its gaps."""
    input = torch.randn(4, 5, 6, device=device).to(dtype)
    epsilon = torch.linspace(-1, 1, 5, device=device)
    expected = api.crrelu(input, epsilon)
    for view in (
        lambda t: t[:4, :5, :6],
        lambda t: t[::2, ::2, ::2][:4, :5, :6],
        lambda t: t[:6, :5, :4].permute(2, 1, 0),
        lambda t: t[1:5, 0:10:2, 3:9],
    ):
        space = torch.full((12, 12, 12), 7.0, dtype=dtype, device=device)
        mask = torch.zeros_like(space, dtype=torch.bool)
        view(mask).fill_(True)
        out = view(space)
        strides = out.stride()
        assert api.crrelu(input, epsilon, out=out) is out
        assert out.stride() == strides
        assert torch.equal(out, expected)
        assert (space[~mask] == 7).all()


def test_input_of_other_strides_with_out(api: ModuleType, device: str, dtype: torch.dtype) -> None:
    epsilon = torch.linspace(-1, 1, 5, device=device)
    whole = torch.randn(5, 5, 5, device=device).to(dtype)
    for input in (whole.permute(2, 0, 1), whole[:, :, ::2], whole[:, :, :1].expand(5, 5, 4)):
        out = torch.empty(input.shape, dtype=dtype, device=device)
        api.crrelu(input, epsilon, out=out)
        assert torch.equal(out, api.crrelu(input, epsilon))


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_ones_are_not_written_from_or_to(api: ModuleType, layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=layout)
    before = [part.clone() for part in nested.unbind()]
    with pytest.raises(ValueError, match="crrelu: out is a nested tensor of layout"):
        api.crrelu(INPUT, EPSILON, out=nested)
    with pytest.raises(ValueError, match="crrelu: input is a nested tensor of layout"):
        api.crrelu_(nested, EPSILON)
    assert all(map(torch.equal, nested.unbind(), before))


def test_negated_views(api: ModuleType, device: str) -> None:
    """Tensors whose sign torch has put off to be changed."""
    input = torch.randn(4, 5, device=device)
    expected = api.crrelu(-input, EPSILON.to(device))
    negated = torch._neg_view(input)
    assert torch.equal(api.crrelu(negated, EPSILON.to(device)), expected)
    out = torch._neg_view(torch.empty_like(input))
    api.crrelu(negated, EPSILON.to(device), out=out)
    assert torch.equal(out, expected)
    assert torch.equal(api.crrelu_(negated, EPSILON.to(device)), expected)
    assert torch.equal(-input, expected)
    negative = torch._neg_view(-EPSILON.to(device))
    assert torch.equal(api.crrelu(out, negative), api.crrelu(out.clone(), EPSILON.to(device)))


def test_out_that_overlaps_itself(api: ModuleType) -> None:
    out = torch.ones(1, 3).expand(2, 3)
    with Unchanged(out), pytest.raises(RuntimeError, match="single memory location"):
        api.crrelu(INPUT, EPSILON, out=out)


def overlapping(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    memory = torch.randn(40)
    if kind == "shifted":
        return memory[:12].view(3, 4), torch.ones(1), memory[1:13].view(3, 4)
    if kind == "transposed":
        return memory[:9].view(3, 3), torch.ones(1), memory[:9].view(3, 3).t()
    if kind == "epsilon":
        return torch.randn(3, 4), memory[5:9], memory[:12].view(3, 4)
    if kind == "resized":
        return torch.randn(3, 4), memory[:4], memory[:4]
    return torch.randn(3, 4), memory[:4], memory[:12].view(3, 4)  # epsilon at its very start


@pytest.mark.parametrize(
    "kind", ["shifted", "transposed", "epsilon", "start_of_epsilon", "resized"]
)
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized:UserWarning")
def test_out_that_overlaps_what_is_read(api: ModuleType, kind: str) -> None:
    """Refused, or, where the result is computed before any of it is written, right."""
    input, epsilon, out = overlapping(kind)
    expected = reference.crrelu(input.clone(), epsilon.clone())
    if api is functional:
        with Unchanged(out), pytest.raises(RuntimeError, match="single memory location"):
            api.crrelu(input, epsilon, out=out)
    else:
        torch.testing.assert_close(api.crrelu(input, epsilon, out=out), expected)


@pytest.mark.parametrize("requires_grad", ["input", "epsilon", "out"])
def test_out_has_no_gradients(api: ModuleType, requires_grad: str) -> None:
    tensors = {"input": INPUT.clone(), "epsilon": EPSILON.clone(), "out": torch.ones(2, 3)}
    tensors[requires_grad].requires_grad_()
    with Unchanged(*tensors.values()), pytest.raises(RuntimeError) as raised:
        api.crrelu(tensors["input"], tensors["epsilon"], out=tensors["out"])
    assert "out=" in str(raised.value)
    assert "requires grad" in str(raised.value)
    if api is functional:
        assert f"{requires_grad} requires grad" in str(raised.value)
        assert "no_grad" in str(raised.value)
    with torch.no_grad():
        api.crrelu(tensors["input"], tensors["epsilon"], out=tensors["out"])
    assert torch.equal(tensors["out"], api.crrelu(INPUT, EPSILON))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # within torch itself
def test_out_with_a_forward_gradient(api: ModuleType) -> None:
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(INPUT.clone(), torch.ones_like(INPUT))
        with pytest.raises(RuntimeError, match="out="):
            api.crrelu(dual, EPSILON, out=torch.empty(2, 3))


@pytest.mark.parametrize("given", NOT_A_TENSOR)
def test_out_that_is_no_tensor(api: ModuleType, given: str) -> None:
    if given == "None":
        assert torch.equal(api.crrelu(INPUT, EPSILON, out=None), api.crrelu(INPUT, EPSILON))
        return
    value, name = NOT_A_TENSOR[given]
    with pytest.raises(TypeError) as raised:
        api.crrelu(INPUT, EPSILON, out=value)
    for part in ("out", name, "Tensor"):
        assert part in str(raised.value)


def test_out_on_another_device(api: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="device") as raised:
        api.crrelu(INPUT, EPSILON, out=torch.empty(2, 3, device="meta"))
    for part in ("cpu", "meta"):
        assert part in str(raised.value)


def test_sparse_out() -> None:
    with pytest.raises(ValueError, match=r"out has layout .*strided"):
        crrelu_ext.crrelu(INPUT, EPSILON, out=INPUT.to_sparse())


@pytest.mark.parametrize("input_first", [True, False])
def test_error_about_input_leaves_out_alone(api: ModuleType, input_first: bool) -> None:
    out = torch.ones(5)
    input, epsilon = (INPUT.long(), EPSILON) if input_first else (INPUT, torch.ones(2))
    with Unchanged(out), pytest.raises((TypeError, ValueError)):
        api.crrelu(input, epsilon, out=out)
    assert torch.equal(out, torch.ones(5))


# In place


def test_in_place(api: ModuleType, device: str, dtype: torch.dtype) -> None:
    for channels in (1, 3):
        input, epsilon = INPUT.to(device, dtype, copy=True), EPSILON.to(device).repeat(channels)
        expected, address = api.crrelu(input, epsilon), input.data_ptr()
        assert api.crrelu_(input, epsilon, channel_dim=-1) is input
        assert input.data_ptr() == address
        assert torch.equal(input, expected)


def test_in_place_of_a_view(api: ModuleType, device: str, dtype: torch.dtype) -> None:
    base = torch.randn(6, 8, device=device).to(dtype)
    epsilon = torch.linspace(-1, 1, 4, device=device)
    for view in (
        lambda t: t[1:5].t(),
        lambda t: t[:, ::2],
        lambda t: t[1:, 3:7],
    ):
        memory, expected = base.clone(), base.clone()
        channel_dim = view(base).shape.index(4)
        result = api.crrelu(view(base), epsilon, channel_dim=channel_dim)
        view(expected).copy_(result)
        api.crrelu_(view(memory), epsilon, channel_dim=channel_dim)
        assert torch.equal(memory, expected)


def test_in_place_of_an_expanded_tensor(api: ModuleType) -> None:
    expanded = torch.ones(1, 3).expand(2, 3)
    with Unchanged(expanded), pytest.raises(RuntimeError, match="single memory location"):
        api.crrelu_(expanded, EPSILON)


def test_in_place_with_an_epsilon_that_is_part_of_it() -> None:
    memory = torch.ones(2, 3)
    with Unchanged(memory), pytest.raises(RuntimeError, match="single memory location"):
        crrelu_ext.crrelu_(memory, memory[0])


@pytest.mark.parametrize("which", ["leaf", "not_a_leaf", "view_of_a_leaf", "epsilon"])
def test_in_place_has_no_gradients(api: ModuleType, which: str) -> None:
    leaf = INPUT.clone().requires_grad_(which != "epsilon")
    epsilon = EPSILON.clone().requires_grad_(which == "epsilon")
    x = {"not_a_leaf": leaf * 1, "view_of_a_leaf": leaf[:1]}.get(which, leaf)
    with Unchanged(x, leaf), pytest.raises(RuntimeError, match="requires grad"):
        api.crrelu_(x, epsilon)
    expected = api.crrelu(x.detach(), epsilon.detach())
    with torch.no_grad():
        assert api.crrelu_(x, epsilon) is x
    assert torch.equal(x, expected)
    assert x.requires_grad == (which != "epsilon")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, nullcontext])
@pytest.mark.parametrize("form", ["in_place", "out"])
def test_writing_is_noticed(api: ModuleType, form: str, mode: Any) -> None:
    """By the version counter, so that a graph which has saved the tensor does not use it."""
    x = INPUT.clone()
    weight = torch.ones(2, 3, requires_grad=True)
    product = weight * x
    version = x._version
    with mode():
        if form == "in_place":
            api.crrelu_(x, EPSILON)
        else:
            api.crrelu(INPUT, EPSILON, out=x)
    assert x._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@pytest.mark.parametrize("form", ["in_place", "out"])
def test_writing_to_a_saved_leaf_is_noticed(api: ModuleType, form: str) -> None:
    leaf = INPUT.clone().requires_grad_()
    output = crrelu_ext.crrelu(leaf, EPSILON)
    with torch.no_grad():
        if form == "in_place":
            api.crrelu_(leaf, EPSILON)
        else:
            api.crrelu(INPUT, EPSILON, out=leaf)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_inference_mode(api: ModuleType) -> None:
    expected = api.crrelu(INPUT, EPSILON)
    with torch.inference_mode():
        x = INPUT.clone()
        output = api.crrelu(x, EPSILON.clone().requires_grad_())
        assert output.is_inference()
        assert torch.equal(output, expected)
        assert torch.equal(api.crrelu_(x, EPSILON), expected)
        assert torch.equal(api.crrelu(INPUT, EPSILON, out=x), expected)
    api.crrelu(x, EPSILON)  # an inference tensor, outside
    with pytest.raises(RuntimeError, match="nference"):
        api.crrelu_(x, EPSILON)
