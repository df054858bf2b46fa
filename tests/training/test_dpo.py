"""Preference pairs in their published schemas, and DPO on them by trl."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed")
import datasets
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.training import dpo, preferences, results, study
from benchmarks.training.language import byte_tokenizer
from benchmarks.training.loop import Nobody
from benchmarks.training.recipe import Recipe, cells
from benchmarks.training.results import Result
from benchmarks.training.task import DataError
from benchmarks.training.text import standard_library

from .small import ALONE, EAFO, without_times

SMALL: dict[str, Any] = {
    "dataset": "stdlib-pairs",
    "model_args": {"n_embd": 16, "n_head": 2},  # with GPT-2's dropout
    "epochs": 2,
    "steps_per_epoch": 4,
    "batch_size": 4,
    "pairs": 64,
    "seed": 0,
    "checkpoint_every": 2,
    "tensorboard": False,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setitem(preferences.MADE, "validation", 16)


def run(folder: Path, watch: Nobody | None = None, **changes: Any) -> list[Result]:
    return list(study.run(folder, cells({**SMALL, **changes}), ALONE, lambda *_: watch or Nobody()))


def recipe(**changes: Any) -> Recipe:
    (one,) = cells({**SMALL, **changes})
    return one


def test_embedded(tmp_path: Path) -> None:
    ours, gelu = run(tmp_path, activation=["crrelu", "gelu"], epochs=3, learning_rate=1e-2)
    assert [epoch.metrics.keys() for epoch in ours.epochs] == [{"loss", "accuracy", "margin"}] * 3
    assert ours.epochs[0].loss == pytest.approx(0.69, abs=0.1)
    assert ours.epochs[-1].metrics["margin"] > 0
    assert ours.epochs[0].rate > 0
    assert len(ours.epochs[-1].epsilons) == 2
    assert all(values != [0.01] for values in ours.epochs[-1].epsilons.values())
    assert gelu.epochs[-1].epsilons == {}
    assert results.read(tmp_path) == [ours, gelu]
    assert {file.name for file in (tmp_path / "cells").rglob("*.*")} >= {"weights.pt"}


def test_pairs_are_what_they_say() -> None:
    train_on, _ = preferences.load(recipe())
    text = bytes(standard_library().train.tolist()).decode("latin-1")
    for pair in train_on.select(range(5)):
        assert pair["prompt"] + pair["chosen"] in text
        assert pair["prompt"] + pair["rejected"] not in text


class Killed(BaseException):
    pass


class Killer(Nobody):
    def __init__(self, at: int) -> None:
        self.left = at

    def step(self, epoch: int, step: int, steps: int, loss: float, rate: float) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1


def test_resume(tmp_path: Path) -> None:
    (expected,) = run(tmp_path / "whole")
    for steps in (3, 2, 4):
        try:
            run(tmp_path / "killed", Killer(steps))
        except Killed:
            checkpoints = list(tmp_path.glob("killed/cells/*/trainer/checkpoint-*"))
            assert checkpoints
            # As one that was being written looks.
            (checkpoints[0].parent / "checkpoint-9").mkdir(exist_ok=True)
    (got,) = results.read(tmp_path / "killed")
    assert without_times(got.epochs) == without_times(expected.epochs)
    weights = [
        torch.load(next(tmp_path.glob(f"{name}/cells/*/weights.pt")), weights_only=True)
        for name in ("whole", "killed")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_result_that_cannot_be_written_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk: the next run goes on from the last checkpoint."""
    with monkeypatch.context() as full:
        full.setattr(results, "append_line", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(RuntimeError, match="make room"):
            run(tmp_path / "full")
    (got,) = run(tmp_path / "full", Killer(0))  # which allows no step
    assert not list(tmp_path.glob("full/cells/*/trainer"))
    (expected,) = run(tmp_path / "empty")
    assert without_times(got.epochs) == without_times(expected.epochs)
    weights = [
        torch.load(next(tmp_path.glob(f"{name}/cells/*/weights.pt")), weights_only=True)
        for name in ("full", "empty")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_full_disk_names_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("unexpected pos")  # as torch says it

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RuntimeError, match=r"cells/stdlib-pairs-.*: unexpected pos"):
        run(tmp_path)


SHP = {
    "post_id": "ab12cd", "domain": "askbaking_train", "upvote_ratio": 0.99,
    "history": "Which flour keeps a loaf of bread soft for a week?",
    "c_root_id_A": "aaaaaaa", "c_root_id_B": "bbbbbbb", "created_at_utc_A": 1600000002,
    "created_at_utc_B": 1600000001, "score_A": 4, "score_B": 5,
    "human_ref_A": "None does.", "human_ref_B": "Flour matters less than fat and sugar.",
    "labels": 0, "seconds_difference": 1.0, "score_ratio": 1.25,
}  # fmt: skip
HH = {
    "chosen": "\n\nHuman: What are some words?\n\nAssistant: Many.\n\nHuman: Which?"
    "\n\nAssistant: Bread and butter.",
    "rejected": "\n\nHuman: What are some words?\n\nAssistant: Many.\n\nHuman: Which?"
    "\n\nAssistant: Find out yourself.",
}


def write_pairs(folder: Path, dataset: str) -> None:
    """As they are published: SHP in a folder for each subject, HH compressed and without
    validation."""
    if dataset == "shp":
        for subject in ("askacademia", "askbaking"):
            (folder / subject).mkdir(parents=True)
            for split in ("train", "validation", "test"):
                rows = [{**SHP, "labels": number % 2} for number in range(4)]
                text = "".join(json.dumps(row) + "\n" for row in rows)
                (folder / subject / f"{split}.json").write_text(text)
    else:
        (folder / "harmless-base").mkdir(parents=True)
        for split in ("train", "test"):
            with gzip.open(folder / "harmless-base" / f"{split}.jsonl.gz", "wt") as stream:
                stream.write((json.dumps(HH) + "\n") * 6)


def write_gpt2(folder: Path) -> None:
    """A small GPT-2 in a folder, as from_pretrained takes it."""
    config = GPT2Config(vocab_size=256, n_positions=512, n_embd=16, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


@pytest.mark.parametrize("dataset", ["shp", "hh"])
def test_published_schemas(tmp_path: Path, dataset: str) -> None:
    write_pairs(tmp_path / "data", dataset)
    train_on, validate_on = preferences.load(
        recipe(dataset=dataset, data_dir=str(tmp_path / "data"))
    )
    assert (len(train_on), len(validate_on)) == ((8, 8) if dataset == "shp" else (6, 6))
    pair = train_on[0]
    assert pair["prompt"].endswith("\n\nAssistant:")
    if dataset == "shp":
        assert SHP["history"] in pair["prompt"]
        assert (pair["chosen"], pair["rejected"]) == (
            f" {SHP['human_ref_B']}",
            f" {SHP['human_ref_A']}",
        )
        assert train_on[1]["chosen"] == f" {SHP['human_ref_A']}"
    else:
        assert pair["chosen"] == " Bread and butter."
        assert pair["rejected"] == " Find out yourself."
        assert pair["prompt"].count("\n\nHuman:") == 2
    write_gpt2(tmp_path / "gpt2")
    for activation in ("crrelu:-0.1", "gelu-tanh"):
        (result,) = run(
            tmp_path / "study", dataset=dataset, data_dir=str(tmp_path / "data"), context=256,
            model=str(tmp_path / "gpt2"), model_args={}, activation=activation, batch_size=2,
            steps_per_epoch=2, accumulation=2, epochs=1,
        )  # fmt: skip
        assert result.diverged is None
        assert 0 < result.epochs[-1].metrics["loss"] < 2


@pytest.mark.parametrize("activation", ["crrelu", "dynamic-eafo"])
def test_weights_of_a_pretrained_model(tmp_path: Path, activation: str) -> None:
    """What a language cell leaves is what DPO starts from; functions that were derived stay."""
    (pretrained,) = study.run(
        tmp_path,
        cells(
            {"dataset": "stdlib", "epochs": 1, "warmup_epochs": 0, "steps_per_epoch": 8, "seed": 0,
             "model_args": SMALL["model_args"], "tensorboard": False, "activation": activation,
             **EAFO}
        ),
        ALONE,
        lambda *_: Nobody(),
    )  # fmt: skip
    weights = tmp_path / "cells" / pretrained.recipe.cell / "weights.pt"
    name = str(tmp_path / "cells" / "stdlib-small-gpt-{activation}-seed{seed}-*" / weights.name)
    start: dict[str, Any] = {"activation": activation, "weights": name}
    model, _ = dpo._model(recipe(**start))
    expected = torch.load(weights, weights_only=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key])
    run(tmp_path / "dpo", **start, epochs=1, steps_per_epoch=1)
    trained = torch.load(next(tmp_path.glob("dpo/cells/*/weights.pt")), weights_only=True)
    changed = {key for key, value in trained.items() if not torch.equal(value, expected[key])}
    assert {key for key in trained if key.endswith((".c_fc.weight", ".epsilon"))} <= changed
    assert not any(key.endswith((".table", ".place")) for key in changed)


def test_nan_says_where(tmp_path: Path) -> None:
    (result,) = run(tmp_path, learning_rate=1e30, clip=None, warmup_epochs=0)
    assert result.diverged is not None
    assert "The loss is nan at epoch 1, step" in result.diverged


@pytest.mark.parametrize(
    ("content", "message"),
    [("{broken\n", "shp cannot be read"), ('{"a": 1}\n', "another schema.*columns are a")],
)
def test_broken_pairs(tmp_path: Path, content: str, message: str) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        preferences.load(recipe(dataset="shp", data_dir=str(tmp_path)))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"names one file: none-crrelu\* names 0"):
        run(tmp_path, weights="none-{activation}*")
    with pytest.raises(DataError, match=r"must hold train\*\.json\*"):
        preferences.load(recipe(dataset="hh", data_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="allowed are small-gpt, a name on the hub, or a folder"):
        run(tmp_path, model=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="batch_size is 65; allowed are multiples"):
        run(tmp_path, batch_size=65)
