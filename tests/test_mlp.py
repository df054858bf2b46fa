"""CRReLUMLP: the same function as its three layers in a sequence, with less kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jacfwd, jacrev, vmap
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from crrelu_ext import CRReLU, CRReLUMLP, DynamicCRReLU

WAYS = [
    pytest.param(lambda: CRReLUMLP(6, 24), id="scalar"),
    pytest.param(lambda: CRReLUMLP(6, 24, 5, bias=False, per_channel=True), id="channels"),
]
EVERY_WAY = pytest.mark.parametrize("make", WAYS)
Make = Callable[[], CRReLUMLP]


def sequence(model: CRReLUMLP) -> nn.Sequential:
    return nn.Sequential(model.fc1, model.act, model.fc2)


def saved_bytes(model: nn.Module, input: Tensor) -> int:
    """Of all that is kept for the backward pass but parameters; each storage once."""
    parameters = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = model(input)
    assert output.requires_grad
    return sum(kept.values())


class Adapted(nn.Linear):
    """A linear layer with more than a weight, as adapters are."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


@pytest.mark.parametrize(
    "replaced",
    [
        lambda model: model.set_submodule("act", DynamicCRReLU()),
        lambda model: model.set_submodule("act", nn.GELU()),
        lambda model: model.set_submodule("act", CRReLU(3, channel_dim=1)),
        lambda model: model.set_submodule("fc2", Adapted(24, 6)),
        lambda model: parametrizations.weight_norm(model.fc2),
        lambda model: setattr(model.fc2, "forward", lambda hidden: 2 * hidden[..., :6]),
        lambda model: model.act.register_forward_hook(lambda *_: torch.zeros(2, 3, 24)),
        lambda model: model.fc2.register_forward_pre_hook(lambda *_: torch.ones(2, 3, 24)),
        lambda model: model.fc2.register_full_backward_hook(lambda *_: (torch.ones(2, 3, 24),)),
        lambda model: model.fc2.register_full_backward_pre_hook(lambda *_: (torch.ones(2, 3, 6),)),
    ],
    ids=str.split(
        "dynamic gelu channels adapted parametrized patched hook pre-hook backward-hook "
        "backward-pre-hook"
    ),
)
def test_parts_may_be_others(replaced: Callable[[nn.Module], Any]) -> None:
    """Each is then called as the sequence calls it, and measures what that measures."""
    model = CRReLUMLP(6, 24)
    replaced(model)
    twin = sequence(model)
    input = torch.randn(2, 3, 6)
    output, expected = model(input), twin(input)
    assert torch.equal(output, expected)
    weight = model.fc1.weight
    actual = torch.autograd.grad(output.sum(), weight, allow_unused=True)
    assert_close(actual, torch.autograd.grad(expected.sum(), weight, allow_unused=True))
    if isinstance(model.act, DynamicCRReLU):
        assert model.act.histogram.counts.sum() > 0


@EVERY_WAY
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6), (0, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_same_as_the_sequence(make: Make, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    model = make().to(dtype)
    input = torch.randn(shape, dtype=dtype, requires_grad=True)
    leaves = (input, *model.parameters())
    output, expected = model(input), sequence(model)(input)
    assert torch.equal(output, expected)
    grad_output = torch.randn_like(output)
    actual = torch.autograd.grad(output, leaves, grad_output)
    assert_close(actual, torch.autograd.grad(expected, leaves, grad_output))
    with torch.no_grad():
        assert torch.equal(model(input), expected)


@EVERY_WAY
def test_derivatives(make: Make) -> None:
    model = make().double()
    names, parameters = zip(*model.named_parameters(), strict=True)

    def call(input: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(model, dict(zip(names, parameters, strict=True)), (input,))

    leaves = (torch.randn(2, 6, dtype=torch.float64, requires_grad=True), *parameters)
    assert gradcheck(call, leaves, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(call, leaves, atol=1e-4)


@EVERY_WAY
def test_transforms(make: Make) -> None:
    model = make().double()
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    inputs = torch.randn(4, 6, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        return functional_call(model, parameters, (input,)).square().sum()

    per_sample = vmap(grad(loss), in_dims=(None, 0))(parameters, inputs)
    for i, input in enumerate(inputs):
        one = torch.autograd.grad(loss(parameters, input), tuple(parameters.values()))
        assert_close(tuple(g[i] for g in per_sample.values()), one)
    assert_close(jacfwd(model)(inputs[0]), jacrev(model)(inputs[0]))


def test_frozen_parameters() -> None:
    model = CRReLUMLP(6, 24)
    input = torch.randn(3, 6)
    model(input).sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    for frozen in expected:
        model.zero_grad()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name != frozen)
        model(input).sum().backward()
        for name, parameter in model.named_parameters():
            if name == frozen:
                assert parameter.grad is None
            else:
                assert_close(parameter.grad, expected[name])


def test_a_gradient_of_other_strides() -> None:
    model, input = CRReLUMLP(6, 24), torch.randn(2, 3, 6)
    grad_output, parameters = torch.randn(3, 2, 6).transpose(0, 1), tuple(model.parameters())
    actual, expected = (
        torch.autograd.grad(one(input), parameters, grad_output) for one in (model, sequence(model))
    )
    assert_close(actual, expected)


def test_what_is_kept() -> None:
    """x and fc1(x): (1 + 4) of the (1 + 4 + 4) widths that the sequence keeps."""
    model, input = CRReLUMLP(64, 256), torch.randn(32, 64)
    assert saved_bytes(model, input) == (64 + 256) * 32 * 4
    assert saved_bytes(model, input) <= 0.56 * saved_bytes(sequence(model), input)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    model, input = CRReLUMLP(6, 24), torch.randn(3, 6)
    with torch.autocast("cpu", dtype):
        output, expected = model(input), sequence(model)(input)
    assert output.dtype == dtype
    assert torch.equal(output, expected)
    parameters = tuple(model.parameters())
    actual = torch.autograd.grad(output.float().sum(), parameters)
    assert_close(
        actual, torch.autograd.grad(expected.float().sum(), parameters), rtol=2e-2, atol=2e-2
    )
    assert all(g.dtype == torch.float32 for g in actual)


def test_autocast_leaves_float64_and_the_backward_pass_alone() -> None:
    model, input = CRReLUMLP(6, 24), torch.randn(5, 6)
    expected = torch.autograd.grad(model(input).sum(), tuple(model.parameters()))
    output = model(input).sum()
    with torch.autocast("cpu", torch.bfloat16):
        actual = torch.autograd.grad(output, tuple(model.parameters()))
        assert model.double()(input.double()).dtype == torch.float64
    assert_close(actual, expected, rtol=0.1, atol=1e-2)  # fc1's own is autocast


def test_nested_tensors() -> None:
    model = CRReLUMLP(6, 24)
    parts = [torch.randn(n, 6) for n in (2, 5)]
    output = model(torch.nested.nested_tensor(parts, layout=torch.jagged))
    (actual,) = torch.autograd.grad(output.values().sum(), model.fc1.weight)
    (expected,) = torch.autograd.grad(model(torch.cat(parts)).sum(), model.fc1.weight)
    assert_close(actual, expected)


@pytest.mark.parametrize(
    "traced",
    [lambda model, input: torch.fx.symbolic_trace(model), lambda *both: torch.jit.trace(*both)],
    ids=["fx", "jit"],
)
def test_tracing(traced: Callable[[nn.Module, Tensor], nn.Module]) -> None:
    model, input = CRReLUMLP(6, 24), torch.randn(5, 6)
    assert torch.equal(traced(model, input)(input), model(input))


@pytest.mark.parametrize("name", ["in_features", "hidden_features", "out_features"])
def test_bad_widths(name: str) -> None:
    widths: dict[str, Any] = {"in_features": 6, "hidden_features": 24, "out_features": 5}
    for width in (0, -1):
        with pytest.raises(ValueError, match=f"{name} is {width}; allowed are 1 and more"):
            CRReLUMLP(**widths | {name: width})
    with pytest.raises(TypeError, match=f"{name} is 2.5; allowed is an int"):
        CRReLUMLP(**widths | {name: 2.5})


def test_arguments_reach_the_layers() -> None:
    made = CRReLUMLP(6, 24, 5, init=0.25, dtype=torch.bfloat16, device="meta")
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    assert all(p.is_meta for p in made.parameters())
    assert CRReLUMLP(6, 24, init=0.25).act.epsilon.item() == 0.25


def test_hooks_of_all_modules_see_the_parts() -> None:
    model, seen = CRReLUMLP(6, 24), list[nn.Module]()
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        model(torch.randn(2, 6))
    finally:
        hook.remove()
    assert seen == [model.fc1, model.act, model.fc2, model]


def test_bad_dtype() -> None:
    with pytest.raises(TypeError, match=r"dtype is torch\.int8; allowed are float32"):
        CRReLUMLP(6, 24, dtype=torch.int8)


def test_state_dict() -> None:
    """The names that timm's Mlp has."""
    assert list(CRReLUMLP(6, 24).state_dict()) == [
        "fc1.weight",
        "fc1.bias",
        "act.epsilon",
        "fc2.weight",
        "fc2.bias",
    ]
