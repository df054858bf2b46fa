"""Tables and curves: the figures in them, by hand."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.training import plots, published, report, results
from benchmarks.training.__main__ import main
from benchmarks.training.loop import Epoch
from benchmarks.training.premise import Correlation
from benchmarks.training.recipe import Recipe
from benchmarks.training.results import Result
from benchmarks.training.summary import Spread, speeds, summarize

ACCURACIES = {"crrelu": (0.90, 0.92, 0.95), "gelu": (0.89, 0.90, 0.91)}
P = "p is that of a paired t test"


def update(entropy: float, refusal: str | None = None) -> dict[str, Any]:
    return {"entropy": entropy, "location": 2.0, "scale": 0.5, "refusal": refusal}


def result(activation: str, seed: int, accuracy: float) -> Result:
    recipe = replace(Recipe(dataset="cifar10"), activation=activation, seed=seed, epochs=30)
    epsilons = {"act": [0.01, -0.2 * seed]} if activation == "crrelu" else {}
    updates = [update(-0.25 - seed), update(-0.5 - seed, "too few")]
    last = Epoch(
        0.5, {"loss": 0.4, "accuracy": accuracy}, 200.0, epsilons,
        {"act": updates} if activation.startswith("dynamic") else {},
    )  # fmt: skip
    best = Epoch(0.6, {"loss": 0.4, "accuracy": accuracy + 0.01}, 100.0 + seed, epsilons)
    return Result(recipe, [best] * 29 + [last], None, "images", 5, {"device": "cpu"})


@pytest.fixture
def some() -> list[Result]:
    return [
        result(activation, seed, accuracy)
        for activation, accuracies in ACCURACIES.items()
        for seed, accuracy in enumerate(accuracies)
    ]


def test_summary(some: list[Result]) -> None:
    ours, gelu = summarize(some)
    assert ours.difference is not None
    assert ours.last.text(2) == "92.33 ± 2.52"
    assert ours.best.text(2) == "93.33 ± 2.52"
    assert ours.difference.spread.text(2, "+") == "+2.33 ± 1.53"
    expected = stats.ttest_rel(ACCURACIES["crrelu"], ACCURACIES["gelu"]).pvalue
    assert ours.difference.p == pytest.approx(expected)
    assert gelu.difference is None
    assert ours.epsilons["act"].mean == pytest.approx((0.03 - 0.6) / 6)


def test_unpaired_seeds_do_not_count(some: list[Result]) -> None:
    ours = summarize([some[0], some[3], result("crrelu", 9, 0.1)])[0]
    assert ours.difference is not None
    assert (ours.difference.pairs, ours.difference.p) == (1, None)
    alone = summarize(some[:3])[0]
    assert alone.difference is None


def test_equal_differences_prove_nothing() -> None:
    runs = [
        result(name, seed, x) for name, x in (("crrelu", 0.5), ("gelu", 0.25)) for seed in (0, 1)
    ]
    ours = summarize(runs)[0]
    assert ours.difference is not None
    assert (ours.difference.spread.text(2), ours.difference.p) == ("25.00 ± 0.00", None)


def rows(group: list[Result], **options: bool) -> list[list[str]]:
    """Of the section's first table, the head first."""
    lines = itertools.takewhile(bool, report.section(group, **options))
    return [line.strip("| ").split(" | ") for line in lines if "---" not in line]


def test_pairs_that_are_fewer_than_seeds() -> None:
    crrelu = [result("crrelu", seed, 0.9 + seed / 100) for seed in range(5)]
    gelu = [result("gelu", seed, 0.9) for seed in (3, 4, 5)]
    others = [result(*of) for of in (("relu", 5, 0.8), ("silu", 3, 0.8), ("silu", 4, 0.8))]
    head, *of = rows([*crrelu, *gelu, *others])
    at = head.index("difference")
    assert [[row[0], *row[at : at + 2]] for row in of] == [
        ["crrelu", "+3.50 ± 0.71 (2 pairs)", "0.09"],
        ["gelu", "", ""],
        ["relu", "-10.00", ""],
        ["silu", "-10.00 ± 0.00", ""],
    ]
    assert rows([*crrelu, gelu[0]])[1][at] == "+3.00 (1 pair)"
    text = "\n".join(report.section(others + gelu))
    assert "One pair has none, nor have differences that are all equal." in text


def test_no_negative_zero() -> None:
    assert Spread.of([-0.004]).text(2) == "0.00"
    assert Spread.of([-0.5, 0.496]).text(2, "+") == "+0.00 ± 0.70"
    assert Spread.of([-0.006]).text(2, "+") == "-0.01"
    assert Correlation(-0.001, 0.9, 5).text == "+0.00, p 0.9, 5"


@pytest.mark.parametrize("with_diverged", [False, True])
def test_without_gelu(some: list[Result], with_diverged: bool) -> None:
    ours = some[:3]
    gelu = [replace(one, epochs=one.epochs[:1], diverged="The loss is nan.") for one in some[3:]]
    group = ours + gelu * with_diverged
    head, *of = rows(group)
    assert head[:5] == ["activation", "seeds", "accuracy, %", "best epoch", "validation loss, nats"]
    assert head[5:7] == ["images/s", "authors' logs, best epoch, one seed"]
    assert len(of) == 1 + with_diverged
    text = "\n".join(report.section(group))
    assert text.count("GELU") == 1
    assert "There is no GELU with the same seeds here to compare with." in text
    assert P not in text
    assert "no GELU" not in "\n".join(report.section(some))


def test_speeds(some: list[Result]) -> None:
    """By epochs of the same number and seed, where they took turns; the median of the ratios."""
    rates = {"crrelu": (100.0, 90.0, 10.0), "gelu": (50.0, 30.0, 1.0)}
    group = [
        replace(one, epochs=[replace(one.epochs[0], rate=rate) for rate in rates[name]])
        for one in some
        if (name := one.recipe.activation)
    ]
    ours, gelu = summarize(group)
    assert speeds([ours, gelu], gelu) == {"crrelu": 3, "gelu": 1}
    assert speeds([ours, gelu], ours) == {"crrelu": 1, "gelu": pytest.approx(1 / 3)}
    head, *of = rows(group)
    at = head.index("speed")
    assert [row[at - 1 : at + 1] for row in of] == [["90", "3.00"], ["30", "1.00"]]
    head, *of = rows(group, in_turns=False)
    assert "speed" not in head
    assert [row[at - 1] for row in of] == ["90", "30"]


def test_less_its_controls() -> None:
    """In all that is measured."""
    figures = {"dynamic-eafo": (0.90, 0.91), "dynamic-kept": (0.91, 0.93)}
    group = [
        with_loss(result(name, seed, accuracy), 1 - accuracy**2)
        for name, accuracies in figures.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    text = "\n".join(report.section(group))
    head = "| dynamic-eafo less its control | pairs | accuracy, % | p | validation loss, nats | p |"
    row = "| dynamic-kept | 2 | -1.50 ± 0.71 | 0.2 | +0.0275 ± 0.0132 | 0.21 |"
    assert f"{head}\n{'| --- ' * 6}|\n{row}" in text
    assert P in text


def with_loss(one: Result, loss: float) -> Result:
    last = one.epochs[-1]
    last = replace(last, metrics={**last.metrics, "loss": loss})
    return replace(one, epochs=[*one.epochs[:-1], last])


def test_how_many_seeds_a_picture_has(some: list[Result]) -> None:
    def title(group: list[Result]) -> str:
        return plots.curves(group, summarize(group)).get_suptitle().partition(": ")[2]

    assert title(some) == "mean and range of 3 seeds"
    assert title(some[:-1]) == "mean and range of 2 to 3 seeds"
    assert title([some[0], some[3]]) == "one seed"


def test_page(some: list[Result], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for one in some:
        results.append(tmp_path, one)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "## vit_tiny_patch16_224 on cifar10" in capsys.readouterr().out
    page = (tmp_path / "out" / report.PAGE).read_text()
    assert "authors' logs, best epoch, one seed" in page
    assert (
        "| crrelu | 3 | 92.33 ± 2.52 | 93.33 ± 2.52 | +2.33 ± 1.53 | 0.12 | 0.4000 ± 0.0000 |"
        in page
    )
    assert "| 88.72 |" in page
    assert "| speed |" not in page
    assert "`python -m benchmarks.training throughput`" in page
    assert "| crrelu | act | -0.095 ±" in page
    pictures = list((tmp_path / "out").glob("*.png"))
    assert len(pictures) == 2
    assert all(f"({picture.name})" in page for picture in pictures)
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_what_was_derived(tmp_path: Path) -> None:
    for seed in (0, 1):
        results.append(tmp_path, result("dynamic-eafo", seed, 0.9))
    page = report.write(tmp_path, tmp_path / "out").read_text()
    assert (
        "| dynamic-eafo | act | +2.000 ± 0.000 | 0.500 ± 0.000 | -1.000 ± 0.707 | 2 of 4 |" in page
    )
    assert (tmp_path / "out" / "cifar10-vit_tiny_patch16_224-entropy.png").exists()


def test_seeds_with_unequal_updates(tmp_path: Path) -> None:
    """The table counts what there is; the picture goes as far as all that have any."""
    updates: list[dict[str, Any]] = [
        {},
        {"act": []},
        {"act": [update(-2.0)]},
        {"act": [update(-3.0), update(-4.0, "too few")]},
    ]
    for seed, of_seed in enumerate(updates):
        one = result("dynamic-eafo", seed, 0.9)
        last = replace(one.epochs[-1], updates=of_seed)
        results.append(tmp_path, replace(one, epochs=[*one.epochs[:-1], last]))
    page = report.write(tmp_path, tmp_path / "out").read_text()
    assert (
        "| dynamic-eafo | act | +2.000 ± 0.000 | 0.500 ± 0.000 | -3.000 ± 1.414 | 1 of 3 |" in page
    )
    (axes,) = plots.entropies(summarize(results.read(tmp_path))).axes
    assert np.array_equal(axes.lines[0].get_ydata(), [-2.5])
    (without,) = summarize(results.read(tmp_path)[1:2])
    assert without.derived == {}


def test_published_figures() -> None:
    assert published.accuracy("cifar10", "vit_tiny_patch16_224", "crrelu") == 88.72
    assert published.accuracy("cifar10", "resnet18.a1_in1k", "gelu") == 94.78
    for model, activation in (("vit_tiny_patch16_224", "crrelu:-0.3"), ("resnet18d", "gelu"),
                              ("vit_tiny_r_s16_p8_224", "gelu")):  # fmt: skip
        assert published.accuracy("cifar10", model, activation) is None
    assert published.accuracy("cifar100", "resnet18", "relu") == 74.95
    assert published.accuracy("cifar10", "vit_tiny_patch16_224", "relu") is None
    assert published.accuracy("cifar10", "deit_tiny_distilled_patch16_224", "gelu") is None
    assert published.accuracy("digits", "digits-vit", "gelu") is None


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("report nowhere", "STUDY is 'nowhere'"),
        ("run x --config nowhere.yaml", "nowhere.yaml cannot be read"),
        ("run x --activation swish", "activation is 'swish'"),
        ("run x --dataset cifar10", "data_dir is missing"),
        ("run x --dataset cifar10 --data-dir nowhere", "missing or broken|torchvision"),
    ],
)
def test_commands_that_fail(
    command: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 1
    assert re.search(message, capsys.readouterr().out)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "study"
    command = "--activation gelu crrelu --seed 0 --epochs 2 --warmup-epochs 1 --steps-per-epoch 2"
    assert main(["run", str(folder), *command.split()]) == 0
    assert "digits-vit digits crrelu seed 0, loss" in capsys.readouterr().out
    assert main(["run", str(folder), *command.split()]) == 0
    (config,) = folder.glob("recipe-digits-*.yaml")
    assert main(["run", str(folder), "--config", str(config)]) == 0
    assert len(results.read(folder)) == 2
    assert main(["report", str(folder)]) == 0
    assert (folder / "training.md").exists()
