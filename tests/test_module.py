"""The layer CRReLU among PyTorch's own."""

from __future__ import annotations

import copy
import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crrelu_ext
from crrelu_ext import CRReLU

from .oracle import Formula, error_in_ulps, exact_numbers
from .tolerances import TOLERANCES


def assert_applies(layer: CRReLU, input: Tensor) -> None:
    """The layer computes CRReLU with its own epsilon, along its own dimension."""
    shape = [1] * input.dim()
    if layer.num_parameters > 1:
        shape[layer.channel_dim] = -1
    epsilon = exact_numbers(layer.epsilon).reshape(shape)
    terms = Formula(exact_numbers(input)).value(epsilon)
    assert error_in_ulps(layer(input), terms).max() <= TOLERANCES[input.dtype].value


def test_defaults(device: str) -> None:
    layer = CRReLU(device=device)
    assert isinstance(layer.epsilon, nn.Parameter)
    assert layer.epsilon.tolist() == [pytest.approx(0.01)]
    assert layer.epsilon.dtype == torch.float32
    assert layer.epsilon.requires_grad
    assert (layer.num_parameters, layer.init, layer.channel_dim) == (1, 0.01, 1)
    assert [name for name, _ in layer.named_parameters()] == ["epsilon"]
    assert list(layer.buffers()) == []
    assert_applies(layer, torch.randn(50, device=device))


@pytest.mark.parametrize(
    ("shape", "channel_dim"), [((2, 4), 1), ((2, 4, 5), 1), ((2, 5, 4), -1), ((4,), 0)]
)
def test_epsilon_per_channel(
    device: str, dtype: torch.dtype, shape: tuple[int, ...], channel_dim: int
) -> None:
    layer = CRReLU(4, init=-0.5, channel_dim=channel_dim, device=device)
    with torch.no_grad():
        layer.epsilon.add_(torch.arange(4, device=device))
    assert_applies(layer, torch.randn(shape, device=device).to(dtype))


def test_arguments_by_position() -> None:
    layer = CRReLU(3, 0.25)
    assert torch.equal(layer.epsilon, torch.full((3,), 0.25))
    with pytest.raises(TypeError):
        CRReLU(3, 0.25, -1)  # type: ignore[call-arg]


@pytest.mark.parametrize("num_parameters", [0, -1])
def test_num_parameters_out_of_range(num_parameters: int) -> None:
    with pytest.raises(ValueError, match=f"num_parameters is {num_parameters}; .*1"):
        CRReLU(num_parameters)


def test_numbers_of_numpy() -> None:
    three, half, last = np.array(3)[()], np.float32(0.5), np.int64(-1)
    module = CRReLU(three, half, channel_dim=last)  # type: ignore[arg-type]
    assert repr(module) == "CRReLU(num_parameters=3, init=0.5, channel_dim=-1)"
    assert module.epsilon.tolist() == [0.5] * 3


@pytest.mark.parametrize("num_parameters", [1.5, 2.0, "3", None, True])
def test_num_parameters_that_is_no_integer(num_parameters: Any) -> None:
    with pytest.raises(TypeError, match=f"num_parameters is {num_parameters!r}; allowed is an int"):
        CRReLU(num_parameters)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"init": math.nan}, ValueError, "init is nan; allowed are finite"),
        ({"init": -math.inf}, ValueError, "init is -inf; allowed are finite numbers of"),
        ({"init": 1e39}, ValueError, "allowed are finite numbers of torch.float32"),
        (
            {"init": 7e4, "dtype": torch.float16},
            ValueError,
            "init is 70000.0; allowed are finite numbers of torch.float16",
        ),
        ({"init": "a"}, TypeError, "init is 'a'; allowed is a float"),
        ({"channel_dim": 1.0}, TypeError, "channel_dim is 1.0; allowed is an int"),
    ],
)
def test_other_bad_arguments(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        CRReLU(**arguments)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_dtype_that_epsilon_cannot_have(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"dtype is {dtype}; allowed are float32"):
        CRReLU(dtype=dtype)


def test_wrong_number_of_channels_is_an_error_of_the_call() -> None:
    with pytest.raises(ValueError, match="epsilon has 3 values, but input has size 4"):
        CRReLU(3)(torch.ones(2, 4))


def test_repr() -> None:
    assert repr(CRReLU()) == "CRReLU(num_parameters=1, init=0.01, channel_dim=1)"
    layer = CRReLU(8, -0.5, channel_dim=-1)
    assert repr(layer) == "CRReLU(num_parameters=8, init=-0.5, channel_dim=-1)"
    assert "(1): CRReLU(num_parameters=1" in repr(nn.Sequential(nn.Linear(2, 2), CRReLU()))


def changed_layer() -> CRReLU:
    layer = CRReLU(3, channel_dim=-1)
    with torch.no_grad():
        layer.epsilon.copy_(torch.tensor([-1.0, 0.5, 2.0]))
    return layer


def test_state_dict() -> None:
    state = changed_layer().state_dict()
    assert list(state) == ["epsilon"]
    other = CRReLU(3, channel_dim=-1)
    assert other.load_state_dict(state) == nn.modules.module._IncompatibleKeys([], [])
    assert torch.equal(other.epsilon, torch.tensor([-1.0, 0.5, 2.0]))
    with pytest.raises(RuntimeError, match="size mismatch for epsilon"):
        CRReLU(4).load_state_dict(state)


def test_saved_weights_load_safely(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(changed_layer().state_dict(), path)
    state = torch.load(path, weights_only=True)
    assert torch.equal(state["epsilon"], torch.tensor([-1.0, 0.5, 2.0]))


def pickled(layer: CRReLU) -> CRReLU:
    return pickle.loads(pickle.dumps(layer))


def saved_whole(layer: CRReLU) -> CRReLU:
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved_whole])
def test_copies(copied: Any) -> None:
    layer = changed_layer()
    other = copied(layer)
    assert repr(other) == repr(layer)
    assert torch.equal(other.epsilon, layer.epsilon)
    assert other.epsilon.data_ptr() != layer.epsilon.data_ptr()
    input = torch.randn(5, 3)
    assert torch.equal(other(input), layer(input))
    other.reset_parameters()
    assert not torch.equal(other.epsilon, layer.epsilon)


def test_reset_parameters() -> None:
    layer = CRReLU(3, init=-0.25)
    with torch.no_grad():
        layer.epsilon.fill_(7)
    layer.reset_parameters()
    assert torch.equal(layer.epsilon, torch.full((3,), -0.25))
    assert layer.epsilon.requires_grad


def test_meta_device(device: str) -> None:
    layer = CRReLU(3, init=-0.25, device="meta")
    assert layer.epsilon.is_meta
    output = layer(torch.empty(4, 3, device="meta", dtype=torch.bfloat16))
    assert (output.is_meta, output.shape, output.dtype) == (True, (4, 3), torch.bfloat16)
    layer.to_empty(device=device)
    layer.reset_parameters()
    assert torch.equal(layer.epsilon, torch.full((3,), -0.25, device=device))
    with torch.device("meta"):
        assert CRReLU().epsilon.is_meta


def test_meta_tensors_through_the_backward_pass() -> None:
    layer = CRReLU(3, device="meta")
    input = torch.empty(2, 3, 4, device="meta").to(memory_format=torch.contiguous_format)
    input.requires_grad_()
    layer(input).sum().backward()
    assert input.grad is not None
    assert layer.epsilon.grad is not None
    assert (input.grad.is_meta, input.grad.shape) == (True, (2, 3, 4))
    assert (layer.epsilon.grad.is_meta, layer.epsilon.grad.shape) == (True, (3,))


@pytest.mark.parametrize("like", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtype_argument(device: str, like: torch.dtype) -> None:
    layer = CRReLU(2, init=0.5, device=device, dtype=like)
    assert layer.epsilon.dtype == like
    assert layer.epsilon.device.type == device
    assert layer(torch.ones(3, 2, dtype=like, device=device)).dtype == like


def test_model_in_bfloat16(device: str) -> None:
    """model.bfloat16() turns epsilon, too; kept in float32 it works as well."""
    model = nn.Sequential(nn.Linear(8, 8), CRReLU(8, -0.5), nn.Linear(8, 2)).to(device)
    model.bfloat16()
    layer = model[1]
    assert isinstance(layer, CRReLU)
    input = torch.randn(4, 8, device=device).bfloat16()
    for epsilon_dtype in (torch.bfloat16, torch.float32):
        layer.to(epsilon_dtype)
        output = model(input)
        output.float().sum().backward()
        assert output.dtype == torch.bfloat16
        assert layer.epsilon.grad is not None
        assert layer.epsilon.grad.dtype == epsilon_dtype
        layer.epsilon.grad = None
        assert_applies(layer, input)


def test_an_epsilon_that_is_computed() -> None:
    """As a parametrization makes it of another parameter."""

    class Bounded(nn.Module):
        def forward(self, free: Tensor) -> Tensor:
            return free.tanh()

    model, input = CRReLU(init=2.0), torch.randn(9)
    nn.utils.parametrize.register_parametrization(model, "epsilon", Bounded())
    assert torch.equal(model(input), crrelu_ext.crrelu(input, torch.tensor([2.0]).tanh()))
    model(input).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_init_must_be_finite_in_the_dtype_that_epsilon_has() -> None:
    largest = torch.finfo(torch.float32).max
    assert CRReLU(init=largest).epsilon.item() == largest
    with pytest.raises(
        ValueError, match=r"init is 1e\+300; allowed are finite .* of torch.float32"
    ):
        CRReLU(init=1e300)
    assert CRReLU(init=1e300, dtype=torch.float64).epsilon.item() == 1e300
    torch.set_default_dtype(torch.float64)
    try:
        assert CRReLU(init=1e300).epsilon.item() == 1e300
    finally:
        torch.set_default_dtype(torch.float32)


def test_functional_call(device: str) -> None:
    layer = CRReLU(3, device=device)
    input = torch.randn(5, 3, device=device)
    epsilon = torch.tensor([1.0, -1.0, 0.0], device=device)
    output = torch.func.functional_call(layer, {"epsilon": epsilon}, input)
    expected = Formula(exact_numbers(input)).value(exact_numbers(epsilon))
    assert error_in_ulps(output, expected).max() <= TOLERANCES[torch.float32].value
    assert not torch.equal(output, layer(input))


def test_training_step(device: str) -> None:
    """Of a layer alone: epsilon is learnt. f is linear in epsilon, so the optimum is known."""
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(512, 3, generator=generator).to(device)
    target_epsilon = np.array([-0.5, 0.1, 0.9])
    target = torch.from_numpy(sum(Formula(exact_numbers(input)).value(target_epsilon))).float()
    target = target.to(device)
    layer = CRReLU(3, device=device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(input), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert layer.epsilon.tolist() == pytest.approx(target_epsilon.tolist(), abs=1e-3)


def test_training_a_network(device: str) -> None:
    torch.manual_seed(0)
    activations = [CRReLU(), CRReLU(16)]
    model = nn.Sequential(
        nn.Linear(2, 16), activations[0], nn.Linear(16, 16), activations[1], nn.Linear(16, 1)
    ).to(device)
    input = torch.randn(256, 2, device=device)
    target = input[:, :1] * input[:, 1:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = F.mse_loss(model(input), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
    for layer in activations:
        assert (layer.epsilon != layer.init).all()


def test_names() -> None:
    """What the package offers at its top."""
    assert set(crrelu_ext.__all__) >= {"CRReLU", "build_info", "crrelu", "crrelu_", "reference"}
    for name in crrelu_ext.__all__:
        assert getattr(crrelu_ext, name) is not None
