"""CRReLU from ReLU, and what takes its place under other densities: examples/derive_crrelu.py."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from crrelu_ext import eafo

from .cases import NORMAL

EXAMPLE = Path(__file__).parents[2] / "examples" / "derive_crrelu.py"
X = torch.linspace(0, 4, 81, dtype=torch.float64)


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


def two_normals(mean: float) -> Callable[[Tensor], Tensor]:
    def derivative(x: Tensor) -> Tensor:
        left, right = x + mean, x - mean
        return -left * torch.exp(-left * left / 2) - right * torch.exp(-right * right / 2)

    curvature = 2 * (mean**2 - 1) * math.exp(-(mean**2) / 2)
    return lambda x: derivative(x) / curvature


@pytest.mark.parametrize(
    ("name", "bump"),
    [
        ("normal", lambda x: x * torch.exp(-x * x / 2)),
        ("logistic", lambda x: 2 * torch.tanh(x / 2) / torch.cosh(x / 2) ** 2),
        ("Student-t", lambda x: x / (1 + x * x / 3) ** 3),
        ("two normals", two_normals(0.7)),
        ("two normals apart", two_normals(2.0)),
    ],
)
def test_bumps(example: dict[str, Any], name: str, bump: Callable[[Tensor], Tensor]) -> None:
    derived = example["derive_bump"](example["DENSITIES"][name])
    assert torch.allclose(derived(X), bump(X), rtol=0, atol=1e-6)


def test_the_example_runs(
    example: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["derive_crrelu.py", str(tmp_path)])
    example["main"]()
    output = capsys.readouterr().out
    assert output.count("0.606531") == 2  # exp(-½), in closed form and derived
    assert (tmp_path / "bumps.png").exists()


def test_descent_from_a_leaky_relu_is_crrelu_with_a_negative_epsilon() -> None:
    """Under a normal density f + C D is a leaky ReLU - C φ(0) x exp(-x²/2), on both sides of 0."""
    slope = 0.2
    result = eafo.improve(lambda x: F.leaky_relu(x, slope), NORMAL)
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    epsilon = -result.steps[0].step_size / math.sqrt(2 * math.pi)
    exact = F.leaky_relu(x, slope) + epsilon * x * torch.exp(-x * x / 2)
    assert epsilon < 0
    assert torch.allclose(result.activation(x), exact, rtol=0, atol=1e-6)


def test_under_a_normal_density_entropy_falls_towards_negative_epsilon() -> None:
    def bump(epsilon: float) -> Callable[[Tensor], Tensor]:
        return lambda x: x + epsilon * x * torch.exp(-x * x / 2)

    h = 1e-3
    slope = (eafo.output_entropy(bump(h), NORMAL) - eafo.output_entropy(bump(-h), NORMAL)) / (2 * h)
    assert slope == pytest.approx(1 / (2 * math.sqrt(2)), abs=1e-6)
