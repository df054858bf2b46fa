"""Entropy, overlap and accuracy of trained models: the figures by hand, and the command."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.training import premise
from benchmarks.training.__main__ import main
from benchmarks.training.premise import Layer, correlations, entropies, overlap

from .small import EAFO, VIT, run_study


def test_entropies() -> None:
    chance = np.random.default_rng(0)
    normal = chance.normal(0, 3, 8000)
    narrow = chance.uniform(0, 0.25, 8000)
    atom = np.maximum(chance.normal(0, 1, 8000), 0)
    expected = (0.5 * math.log(2 * math.pi * math.e) + math.log(3) + math.log(0.25)) / 2
    mean, atoms = entropies(np.stack([normal, narrow, atom], 1))
    assert mean == pytest.approx(expected, abs=0.03)
    assert atoms == pytest.approx(1 / 3)
    mean, atoms = entropies(np.stack([normal, atom, atom], 1))
    assert mean is None
    assert atoms == pytest.approx(2 / 3)


def test_overlap() -> None:
    chance = np.random.default_rng(0)
    labels = np.arange(3).repeat(400)
    same = chance.normal(size=(1200, 10, 2))
    apart = same + 100.0 * labels[:, None, None]
    one_apart = same + 100.0 * (labels == 2)[:, None, None]
    assert overlap(same, labels) > 0.95
    assert overlap(apart, labels) == pytest.approx(0, abs=0.05)  # two bins have two classes
    assert overlap(one_apart, labels) == pytest.approx(1 / 3, abs=0.05)
    assert overlap(np.exp(same), labels) == overlap(same, labels)
    assert overlap(np.zeros((1200, 1, 1)), labels) == 1
    # Of two classes, uniform on (0, 1) and on (1/2, 3/2), half is shared.
    shifted = chance.uniform(size=(800, 10, 1)) + 0.5 * (labels[:800] == 1)[:, None, None]
    assert overlap(shifted, labels[:800]) == pytest.approx(0.5, abs=0.05)


def layer(entropy: float | None, overlap: float, accuracy: float) -> Layer:
    return Layer("cell", "gelu", "act", entropy, 0.0, overlap, accuracy)


def test_correlations() -> None:
    layers = [layer(-n, n**2 / 50, 0.5 - n / 50) for n in range(6)] + [layer(None, 0.9, 0.0)]
    found = [(round(one.rho, 6), one.models) for one in correlations(layers) if one]
    assert found == [(-1, 6), (1, 6), (-1, 7)]
    assert correlations(layers[:2] * 5) == [None] * 3


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    activations = ["relu", "dynamic-eafo", "dynamic-random"]
    run_study(tmp_path, {**VIT, **EAFO, "activation": activations, "epochs": 2, "seed": [0, 1]})
    assert main(["premise", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("measured") == 6
    assert main(["premise", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
    layers = premise.read(tmp_path)
    assert [one.layer for one in layers[:2]] == [f"encoder.layers.{i}.activation" for i in (0, 1)]
    assert len(layers) == 12
    for one in layers:
        assert (one.entropy is None) == (one.activation == "relu") == (one.atoms > 0.5)
        assert 0.3 < one.overlap < 1
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "training.md").read_text()
    assert "### Entropy, overlap, accuracy" in page
    assert "| relu | encoder.layers.0.activation |  | 100% |" in page
    assert (
        "| encoder.layers.1.activation | +" in page or "| encoder.layers.1.activation | -" in page
    )
    own = "eafo_every 2, eafo_warmup 4"
    assert f"| dynamic-random, {own} | 2 | " in page.split("less its control")[1]
    (picture,) = tmp_path.glob("*-premise.png")
    assert f"({picture.name})" in page
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_no_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["premise", str(tmp_path)]) == 1
    assert "allowed is one with trained digits-vit models" in capsys.readouterr().out
