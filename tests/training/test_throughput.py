"""The table of speeds, and what training keeps in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

import crrelu_ext
from benchmarks.training.__main__ import main
from benchmarks.training.build import build
from benchmarks.training.loop import Epoch
from benchmarks.training.throughput import beside_first, saved_bytes, take_turns

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
    assert main(["throughput", "--rounds", "3", "--dataset", "digits"]) == 0
    printed = capsys.readouterr().out
    assert f"threads {torch.get_num_threads()}; " in printed
    assert f", {crrelu_ext.build_info()['isa']}; " in printed
    assert "| gelu |" in printed
    assert "| 1.000 | 1.000 to 1.000 |" in printed
    assert main(["throughput", "--rounds", "2"]) == 1
    assert "rounds is 2; allowed are 3 and more" in capsys.readouterr().out


def test_ratios() -> None:
    """Above 1 it is faster than the first; each round has one, and their median counts."""
    rounds = [[100.0, 200.0], [50.0, 150.0], [200.0, 100.0], [100.0, 900.0], [10.0, 40.0]]
    assert list(beside_first(rounds)) == [
        ("100", "1.000", "1.000 to 1.000"),
        ("150", "3.000", "2.000 to 4.000"),
    ]


def test_turns() -> None:
    """Each has one in each round, and none is always the first."""
    order: list[int] = []

    def training(number: int) -> Iterator[Epoch]:
        for rate in itertools.count(10 * number):
            order.append(number)
            yield Epoch(0.0, {}, rate, {})

    rounds = take_turns([training(number) for number in range(3)], 4)
    assert rounds == [[0, 10, 20], [1, 11, 21], [2, 12, 22], [3, 13, 23]]
    assert order == [0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 1, 2]
