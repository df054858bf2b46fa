"""Tensors of other kinds: subclasses, modes, nested ones, devices without kernels of ours."""

# mypy: disable-error-code="attr-defined"

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import crrelu_ext
from crrelu_ext import CRReLU, DerivedActivation, crrelu, crrelu_, crrelu_glu, reference
from crrelu_ext.functional import tabulated

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
EPSILON = torch.tensor([0.3])
OPS = {"crrelu", "crrelu_glu"}


class Tagged(Tensor):
    """A subclass that does nothing of its own but stay one."""


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(OPS))
def test_subclass(name: str) -> None:
    function = getattr(crrelu_ext, name)
    plain = [torch.randn(4, 3) for _ in range(1 if name == "crrelu" else 2)]
    tagged = [x.as_subclass(Tagged) for x in plain]
    output = function(*tagged, EPSILON)
    assert type(output) is Tagged
    assert torch.equal(output.as_subclass(Tensor), function(*plain, EPSILON))


def test_subclass_written_to() -> None:
    x = torch.randn(4, 3)
    expected = crrelu(x, EPSILON)
    for input in (x, x.as_subclass(Tagged)):
        for out in (torch.empty(0), torch.empty(4, 3).as_subclass(Tagged)):
            assert torch.equal(crrelu(input, EPSILON, out=out).as_subclass(Tensor), expected)
            assert torch.equal(out.as_subclass(Tensor), expected)
    tagged = x.clone().as_subclass(Tagged)
    assert crrelu_(tagged, EPSILON) is tagged
    assert torch.equal(tagged.as_subclass(Tensor), expected)
    with Functions() as functions:
        crrelu_(x.clone(), EPSILON)
    assert any("crrelu" in name for name in functions.names)


def test_modes_see_the_operators() -> None:
    x = torch.randn(4, requires_grad=True)
    with Calls() as calls:
        (crrelu(x, EPSILON).sum() + crrelu_glu(x, x, EPSILON).sum()).backward()
    assert {"crrelu.default", "crrelu_backward.default"} <= set(calls.names)
    assert {"crrelu_glu.default", "crrelu_glu_backward.default"} <= set(calls.names)
    with Functions() as functions:
        crrelu(x, EPSILON)
    assert any("crrelu" in name for name in functions.names)


def nested(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    parts = [torch.randn(shape, dtype=dtype) for shape in shapes]
    return torch.nested.nested_tensor(parts, layout=torch.jagged, requires_grad=True)


@pytest.mark.parametrize("module", [crrelu_ext, reference], ids=["native", "reference"])
def test_nested(module: Any) -> None:
    gate, up = nested((3, 4), (1, 4), (5, 4)), None
    up = torch.nested.nested_tensor_from_jagged(
        torch.randn(9, 4, dtype=torch.float64), gate.offsets()
    )
    for channels in (1, 4):
        epsilon = torch.linspace(-1, 1, channels, dtype=torch.float64, requires_grad=True)
        outputs = (
            module.crrelu(gate, epsilon, channel_dim=-1),
            module.crrelu_glu(gate, up, epsilon, channel_dim=2),
        )
        values = gate.values().detach().requires_grad_()
        expected = (
            reference.crrelu(values, epsilon, channel_dim=-1),
            reference.crrelu_glu(values, up.values(), epsilon, channel_dim=-1),
        )
        for output, exact in zip(outputs, expected, strict=True):
            assert output.is_nested
            assert output.shape == gate.shape
            assert_close(output.values(), exact)
            assert (output + gate).is_nested  # of the same ragged shape
            assert torch.nested.to_padded_tensor(output, 0.0).shape == (3, 5, 4)
            grads = torch.autograd.grad(output.values().square().sum(), (gate, epsilon))
            exact_grads = torch.autograd.grad(exact.square().sum(), (values, epsilon))
            assert_close(grads[0].values(), exact_grads[0])
            assert_close(grads[1], exact_grads[1])


def test_nested_errors() -> None:
    x = nested((3, 4), (1, 4))
    for channel_dim in (0, 1, 5, -4):
        with pytest.raises(ValueError, match="behind the ragged one"):
            crrelu(x, torch.zeros(4, dtype=torch.float64), channel_dim=channel_dim)
    with pytest.raises(ValueError, match="nested tensors of one ragged shape"):
        crrelu_glu(x, nested((2, 4), (2, 4)), EPSILON.double())
    with pytest.raises(ValueError, match="nested tensors of one ragged shape"):
        crrelu_glu(x, torch.randn(4, 4).double(), EPSILON.double())


@pytest.mark.parametrize("module", [crrelu_ext, reference], ids=["native", "reference"])
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_ones_that_are_refused(module: Any, layout: torch.layout) -> None:
    """Strided ones as anything, jagged ones as what does not go element by element."""
    parts, dense, place = (
        [torch.randn(2, 3), torch.randn(4, 3)],
        torch.randn(2, 3),
        torch.ones(2, 1),
    )
    other = torch.nested.nested_tensor(parts, layout=layout)
    calls: dict[str, Any] = {
        "crrelu: epsilon": lambda: module.crrelu(dense, other),
        "crrelu_at: place": lambda: module.crrelu_at(dense, EPSILON, other),
        "crrelu_glu: epsilon": lambda: module.crrelu_glu(dense, dense, other),
    }
    if layout == torch.jagged:
        calls |= {
            "crrelu: epsilon ": lambda: module.crrelu(other, other),
            "crrelu_at: place ": lambda: module.crrelu_at(other, EPSILON, other),
            "crrelu_glu: epsilon ": lambda: module.crrelu_glu(other, other, other),
        }
    if layout == torch.strided:
        jagged = torch.nested.nested_tensor(parts, layout=torch.jagged)
        calls |= {
            "crrelu: input": lambda: module.crrelu(other, EPSILON),
            "crrelu_at: input": lambda: module.crrelu_at(other, EPSILON, place),
            "crrelu_glu: gate": lambda: module.crrelu_glu(other, other, EPSILON),
            "crrelu_glu: up": lambda: module.crrelu_glu(dense, other, EPSILON),
            "crrelu_glu: up ": lambda: module.crrelu_glu(jagged, other, EPSILON),
            "crrelu_glu: gate ": lambda: module.crrelu_glu(other, jagged, EPSILON),
        }
    for argument, call in calls.items():
        with pytest.raises(ValueError, match=f"{argument.strip()} is a nested tensor") as raised:
            call()
        assert f"{layout}; allowed are dense tensors, and as input, gate or up" in str(raised.value)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize("function", [tabulated, reference.tabulated])
def test_nested_tables(function: Any, layout: torch.layout) -> None:
    other = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=layout)
    with pytest.raises(ValueError, match="tabulated: table is a nested tensor"):
        function(torch.randn(2, 3), other)


def test_nested_in_a_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 6), CRReLU(6, channel_dim=-1), nn.Linear(6, 2)).double()
    output = model(nested((3, 4), (1, 4)))
    output.values().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("make", [Tensor.to_sparse, Tensor.to_sparse_csr], ids=["coo", "csr"])
def test_sparse(make: Any) -> None:
    with pytest.raises(ValueError, match="crrelu: input has layout Sparse"):
        crrelu(make(torch.randn(3, 4)), EPSILON)


def test_quantized() -> None:
    """Refused: none of the kernels knows a scale and a zero point."""
    quantized = torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8)
    plain, table = torch.randn(4), DerivedActivation(torch.tanh, lower=-4.0, upper=4.0).table
    for module in (crrelu_ext, reference):
        with pytest.raises(TypeError, match=r"crrelu: input has dtype .*qint8; allowed are"):
            module.crrelu(quantized, EPSILON)
        with pytest.raises(TypeError, match=r"crrelu_glu: gate has dtype .*qint8; allowed are"):
            module.crrelu_glu(quantized, plain, EPSILON)
        with pytest.raises(TypeError, match=r"crrelu_glu: up has dtype .*qint8; allowed is"):
            module.crrelu_glu(plain, quantized, EPSILON)
    for function in (tabulated, reference.tabulated):
        with pytest.raises(TypeError, match=r"tabulated: input has dtype .*qint8; allowed are"):
            function(quantized, table)


def test_devices_without_kernels_take_the_composed_formula() -> None:
    """The kernel that a device without an own one is given: also here, by its name."""
    for name in ("crrelu", "crrelu_backward", "crrelu_glu", "crrelu_glu_backward"):
        op = f"crrelu_ext::{name}"
        for device in ("MPS", "XPU", "PrivateUse1"):
            assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(op, device)
            assert not torch._C._dispatch_has_kernel_for_dispatch_key(op, device)
    arguments = (torch.randn(5), EPSILON, 1)
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.MPS)
    composed = torch.ops.crrelu_ext.crrelu.default.redispatch(keys, *arguments)
    assert_close(composed, reference.crrelu(*arguments[:2]))
