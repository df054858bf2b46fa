"""What from_model sees of a network's layers, whatever these are, and that it leaves no trace."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crrelu_ext import CRReLU, DynamicCRReLU, eafo
from crrelu_ext.eafo import from_model as module
from crrelu_ext.eafo.from_model import from_model

from .cases import NORMAL


def moments(density: eafo.SampleDensity | None) -> list[float]:
    assert density is not None
    mean = (density.masses * density.centers).sum()
    return [mean.item(), (density.masses * (density.centers - mean) ** 2).sum().sqrt().item()]


@pytest.mark.parametrize("at_most", [2000, 100_000])
def test_every_channel_has_its_share(monkeypatch: pytest.MonkeyPatch, at_most: int) -> None:
    """Also where the channels' number divides that of all values by the samples'."""
    monkeypatch.setattr(module, "MOST_SAMPLES", at_most)
    x = torch.randn(2000, 50) * torch.linspace(0.1, 3, 50) + torch.linspace(-3, 3, 50)
    x += torch.linspace(-2, 2, 2000)[:, None]
    once, again = (from_model(nn.Sequential(nn.Softplus()), x)[0].density for _ in range(2))
    assert once is not None
    assert again is not None
    assert moments(once) == pytest.approx([x.mean().item(), x.std().item()], abs=0.2)
    assert torch.equal(once.centers, again.centers)


class Calls(nn.Module):
    """Calls one layer several times, in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Tanh()

    def forward(self, x: Tensor) -> Any:
        return self.layer(x), self.layer(input=x + 10)


def test_all_calls_count() -> None:
    x = torch.randn(5000)
    (layer,) = from_model(Calls(), x)
    assert moments(layer.density) == pytest.approx([5, 26**0.5], abs=0.1)


class Changing(nn.Module):
    """Changes its layer's input later."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        x.mul_(100)
        return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_that_are_changed_later(dtype: torch.dtype) -> None:
    (layer,) = from_model(Changing(), torch.randn(5000, dtype=dtype))
    assert moments(layer.density) == pytest.approx([0, 1], abs=0.1)
    model = nn.Sequential(nn.SiLU(inplace=True), nn.Linear(4, 4), nn.LeakyReLU(0.3, inplace=True))
    silu, leaky = from_model(model.to(dtype), torch.randn(500, 4, dtype=dtype))
    assert (silu.refusal, leaky.refusal) == (None, None)


@pytest.mark.parametrize("make", [nn.PReLU, CRReLU, DynamicCRReLU])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_layers_with_parameters(make: Any, dtype: torch.dtype) -> None:
    model = nn.Sequential(make(init=0.5)).to(dtype)
    (layer,) = from_model(model, torch.randn(2000, dtype=dtype))
    assert layer.improvement is not None
    x = torch.linspace(-3, 3, 31, dtype=dtype)
    assert torch.allclose(layer.activation(x), model(x))
    for other in (torch.float32, torch.float64):
        assert layer.improvement.activation(x.to(other)).dtype == other


class Leaf(nn.Module):
    """No activation; and what it does with a vector."""

    def __init__(self, error: type[Exception]) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            raise self.error("two dimensions are needed")
        return x


class Uncopied(nn.Module):
    """deepcopy takes no tensor with a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = 2 * torch.ones(1, requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


@pytest.mark.parametrize("error", [AssertionError, KeyError, TypeError, IndexError, RuntimeError])
def test_other_layers_do_no_harm(error: type[Exception]) -> None:
    model = nn.Sequential(nn.Softplus(), Leaf(error), Uncopied(), nn.PReLU(8))
    assert [layer.name for layer in from_model(model, torch.randn(500, 8))] == ["0"]


def test_a_layer_without_a_second_derivative_is_refused() -> None:
    soft, hard = from_model(nn.Sequential(nn.Softplus(), nn.Hardsigmoid()), torch.randn(500))
    assert soft.refusal is None
    assert "derivative for" in str(hard.refusal)


@pytest.mark.parametrize("seed", range(3))
def test_gelu_is_measured(seed: int) -> None:
    torch.manual_seed(seed)
    (layer,) = from_model(nn.Sequential(nn.GELU()), torch.randn(5000))
    assert layer.refusal is None
    assert layer.entropy == pytest.approx(eafo.output_entropy(F.gelu, NORMAL), abs=0.05)
    assert layer.improvement is not None


def test_steps_are_those_asked_for() -> None:
    model, x = nn.Sequential(nn.Softplus()), torch.randn(500)
    (layer,) = from_model(model, x, steps=2)
    assert layer.improvement is not None
    assert len(layer.improvement.steps) == 2
    with pytest.raises(ValueError, match="steps is 0; allowed are whole numbers"):
        from_model(model, x, steps=0)
    with pytest.raises(TypeError, match=r"model has type builtin.*; allowed is a torch.nn.Module"):
        from_model(torch.tanh, x)  # type: ignore[arg-type]


def test_nothing_is_left_behind() -> None:
    recorded = []

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            recorded.append(torch.is_grad_enabled())
            return x

    model = nn.Sequential(nn.Sequential(nn.Softplus(), nn.Dropout()), Watching(), nn.Dropout())
    for training in itertools.product([True, False], repeat=2):
        model[0].training, model[2].training = training
        modes = [part.training for part in model.modules()]
        from_model(model, torch.randn(500))
        assert [part.training for part in model.modules()] == modes
    assert not any(recorded)


def test_in_inference_mode() -> None:
    model, x = nn.Sequential(nn.PReLU(), nn.Softplus()), torch.randn(500)
    with torch.inference_mode():
        layers = from_model(model, x.double().float())
    for layer in layers:
        assert layer.improvement is not None
        points = torch.linspace(-1, 1, 5, requires_grad=True)
        layer.improvement.activation(points).sum().backward()
        assert points.grad is not None
