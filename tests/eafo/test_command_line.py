"""python -m crrelu_ext.eafo, and what it takes by name."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.patches import StepPatch
from torch import Tensor, nn
from torch.distributions import Cauchy, Distribution, Normal

from crrelu_ext import CRReLU, DynamicActivation, eafo
from crrelu_ext.eafo import plots
from crrelu_ext.eafo.__main__ import main
from crrelu_ext.eafo.from_model import from_model
from crrelu_ext.eafo.names import ACTIVATIONS, parse_activation, parse_density

PNG = b"\x89PNG\r\n"


@pytest.mark.parametrize(
    ("command_line", "picture", "expected"),
    [
        ("improve --activation softplus --density normal(0,1) --steps 2", "improve.png", "0.61288"),
        # The last column, whole where a terminal has 80 of them.
        ("improve --activation gelu --steps 2 --step-size 0.001", "improve.png", "1.3e-07"),
        ("improve --activation elu --steps 5 --functions 6", "improve.png", "1.02"),
        ("improve --activation identity --fixed-variance", "improve.png", "stationary"),
        ("worst --density laplace(0,2) --lower 0 --upper 3", "worst.png", "H = 1.09861 nats"),
        ("compare --activations silu,softplus", "compare.png", "-0.27166"),
    ],
)
def test_commands(
    command_line: str,
    picture: str,
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "a[red]b"
    assert main([*command_line.split(), "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert expected in output
    assert str(out / picture) in output
    assert (out / picture).read_bytes().startswith(PNG)


def test_refusals_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for command_line, expected in (
        ("improve --activation relu", "atom"),
        ("improve --activation gelu --functions 8", "turns at x = -0.75179"),
        ("improve --activation swish", "'swish'; allowed are asinh"),
        ("worst --density normal(1)", "do not fit"),
        ("compare --density normal(0,1)+laplace(0,1)", "allowed are such as"),
        ("from-model --model nowhere:model --batch x", "nowhere"),
        ("from-model --model operator:itemgetter --batch x", "allowed is MODULE:NAME. TypeError"),
        ("improve --activation [/]", "activation is '[/]'; allowed are"),
        ("improve --activation identity --density normal(0,1e300)", "up to 1e+100"),
        ("worst --density 0.5*uniform(0,1)+0.5*uniform(2,3)", "density has type Mixture"),
    ):
        assert main(command_line.split()) == 1
        assert expected in capsys.readouterr().out


def test_what_is_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Spaces between names do no harm, one refused row leaves the others; no picture is drawn."""
    monkeypatch.setattr(plots, "comparison", None)
    assert main(["compare", "--activations", "silu, relu, softplus"]) == 0
    output = capsys.readouterr().out
    assert "-0.27166" in output
    assert "relu: activation is flat" in output


def test_the_worst_activation_is_shown_where_the_density_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["worst", "--density", "normal(1000,0.01)"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = {float(row[0]): float(row[1]) for row in rows if len(row) == 2 and row[0][:1].isdigit()}
    assert len(found) == 17
    for x, f in found.items():
        assert f == pytest.approx(
            math.erf((x - 1000) / 0.01 / math.sqrt(2)), abs=5e-3
        )  # x is rounded


@pytest.mark.parametrize("density", [Normal(0.0, 1.0), Cauchy(0.0, 1.0)])
def test_pictures_show_the_output_density(density: Distribution) -> None:
    """Of the identity it is the input's; its area is the probability that is shown."""
    axes = plots.comparison({"line": lambda x: x}, density).axes[1]
    (patch,) = axes.patches
    assert isinstance(patch, StepPatch)
    heights, edges, _ = patch.get_data()
    ends = density.cdf(torch.tensor([edges[0], edges[-1]]))
    area = (heights * (edges[1:] - edges[:-1])).sum()
    assert area == pytest.approx((ends[1] - ends[0]).item(), abs=1e-4)


def broken() -> nn.Module:
    raise KeyError("no such size")


class Picky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise IndexError("no such place")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 64), nn.SiLU(), nn.Dropout(0.5), nn.Linear(64, 64), CRReLU(),
        nn.Linear(64, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Softplus(), nn.Softmax(-1),
    )  # fmt: skip


def test_from_model() -> None:
    model, batch = network().train(), torch.randn(100, 4)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    silu, crrelu, relu, softplus = from_model(model, batch)
    assert [layer.name for layer in (silu, crrelu, relu, softplus)] == ["1", "4", "6", "8"]
    for layer in (silu, crrelu, softplus):
        assert layer.refusal is None
        assert layer.entropy is not None
        assert layer.improvement is not None
        assert layer.density is not None
        assert layer.improvement.steps[0].entropy_after < layer.entropy
        assert layer.entropy == eafo.output_entropy(layer.activation, layer.density)
    assert relu.entropy is None
    assert "atom" in str(relu.refusal)
    assert silu.negentropy is not None
    assert -0.01 < silu.negentropy < 0.3
    assert model.training
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_negentropy_of_a_normal_layer_is_zero() -> None:
    (layer,) = from_model(nn.Sequential(nn.Tanh()), torch.randn(50_000))
    assert layer.negentropy == pytest.approx(0, abs=0.01)
    (layer,) = from_model(nn.Sequential(nn.Tanh()), torch.rand(50_000))
    assert layer.negentropy == pytest.approx(0.5 * math.log(2 * math.pi * math.e / 12), abs=0.07)


def test_one_layer_is_refused_and_the_others_are_not() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.few, self.broken, self.many = nn.Softplus(), nn.SiLU(), DynamicActivation()

        def forward(self, x: Tensor) -> Tensor:
            return self.few(x[:50]).sum() + self.broken(x * torch.nan) + self.many(x)

    few, broken, many = from_model(Network(), torch.randn(5000))
    assert "samples has 50 values" in str(few.refusal)
    assert "samples" in str(broken.refusal)
    assert (few.density, few.negentropy, few.improvement) == (None, None, None)
    assert many.name == "many"
    assert many.entropy is not None
    assert "D jumps" in str(many.refusal)  # a cubic table's f'' does
    picture = plots.layers([few, broken, many])
    assert picture.axes[0].get_title(loc="left") == f"few: {few.refusal}"


def test_from_model_without_activation_layers() -> None:
    with pytest.raises(ValueError, match="no activation layer"):
        from_model(nn.Sequential(nn.Linear(3, 3), nn.Identity()), torch.randn(5, 3))


def test_from_model_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(torch.randn(100, 4), tmp_path / "batch.pt")
    monkeypatch.setitem(sys.modules, "a_model", sys.modules[__name__])
    command_line = ["from-model", "--model", "a_model:network", "--batch"]
    assert main([*command_line, str(tmp_path / "batch.pt"), "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "SiLU" in output
    assert "6: activation is flat" in output
    assert (tmp_path / "layers.png").read_bytes().startswith(PNG)
    assert main([*command_line, str(tmp_path / "missing.pt")]) == 1
    assert main([*command_line, str(tmp_path / "batch.pt"), "--steps", "0"]) == 1
    assert "steps is 0" in capsys.readouterr().out
    for model, complaint in (("broken", "KeyError: 'no such size'"), ("Picky", "IndexError: no")):
        arguments = ["from-model", "--model", f"a_model:{model}", "--batch"]
        assert main([*arguments, str(tmp_path / "batch.pt")]) == 1
        assert complaint in capsys.readouterr().out
    torch.save((torch.randn(100, 4), torch.zeros(100)), tmp_path / "pair.pt")
    (tmp_path / "text.pt").write_text("no tensor")
    (tmp_path / "empty.pt").write_text("")
    for name, complaint in (
        ("pair", "a tuple"),
        ("text", "not what torch.save writes"),
        ("empty", "it ends too early"),
    ):
        assert main([*command_line, str(tmp_path / f"{name}.pt")]) == 1
        assert complaint in capsys.readouterr().out


@pytest.mark.parametrize("checks", [True, False])
def test_names(monkeypatch: pytest.MonkeyPatch, checks: bool) -> None:
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", checks)
    x = torch.tensor(1.3, dtype=torch.float64)
    mixture = parse_density("0.25 * normal(-2, 0.5) + 0.75*normal(1,1e0)")
    exact = sum(
        weight * math.exp(-(((1.3 - mean) / s) ** 2) / 2) / s / math.sqrt(2 * math.pi)
        for weight, mean, s in ((0.25, -2, 0.5), (0.75, 1, 1))
    )
    assert mixture.log_prob(x).exp().item() == pytest.approx(exact)
    logistic = parse_density("logistic(1,2)")
    assert logistic.log_prob(x).exp().item() == pytest.approx(0.25 / 2 / math.cosh(0.075) ** 2)
    assert parse_activation("tanh") is torch.tanh
    assert ACTIVATIONS["crrelu"](x).item() == pytest.approx(1.3 + 0.013 * math.exp(-0.845))
    for text in ("", "normal", "normal(0,1", "normal(0,1)x", "normal(a,b)", "normal(0,-1)", "f(1)"):
        with pytest.raises(ValueError, match="density is"):
            parse_density(text)
