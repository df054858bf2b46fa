"""The table of speeds, and what training keeps in memory."""

from __future__ import annotations

import pytest

from benchmarks.training.__main__ import main
from benchmarks.training.build import build
from benchmarks.training.throughput import saved_bytes

from .small import ALONE, GPT, VIT, recipe


@pytest.mark.parametrize("kind", [VIT, GPT], ids=["digits", "stdlib"])
def test_saved_memory(kind: dict[str, object]) -> None:
    """CRReLU keeps what GELU keeps and its epsilons, which are parameters; the formula more."""
    gelu, ours, composed = (
        saved_bytes(build(recipe(kind, activation=name), ALONE), ALONE)
        for name in ("gelu", "crrelu", "crrelu-composed")
    )
    assert ours == gelu
    assert composed > 1.2 * gelu


def test_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.training.throughput.STEPS", 1)
    assert main(["throughput", "--rounds", "2", "--dataset", "digits"]) == 0
    printed = capsys.readouterr().out
    assert "| gelu |" in printed
    assert "| 1.000 | 1.000 to 1.000 |" in printed
    assert main(["throughput", "--rounds", "1"]) == 1
