"""Knobs: from the command line and from YAML, and what they refuse."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from benchmarks.training import recipe
from benchmarks.training.recipe import KNOBS, Recipe, cells, read, write


def parse(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    recipe.add_arguments(parser)
    return vars(parser.parse_args(arguments))


def test_published_defaults() -> None:
    (one,) = cells({"dataset": "cifar10"})
    assert (one.epochs, one.warmup_epochs, one.batch_size, one.seed) == (300, 20, 256, 42)
    assert (one.learning_rate, one.warmup_rate, one.final_rate) == (2.5e-4, 1e-6, 1e-5)
    assert (one.weight_decay, one.clip, one.amp) == (0.05, 1.0, "auto")


def test_command_line_and_yaml_say_the_same(tmp_path: Path) -> None:
    given = parse(
        *("--dataset", "digits", "stdlib", "--activation", "gelu", "crrelu:-0.3"),
        *("--seed", "0", "1", "--learning-rate", "1e-3", "--clip", "null", "--compile", "true"),
    )
    both = cells(given)
    assert len(both) == 8
    assert {one.model for one in both} == {"digits-vit", "small-gpt"}
    assert {one.learning_rate for one in both} == {1e-3}
    assert all(one.clip is None and one.compile for one in both)
    assert [one.seed for one in both] == [0] * 4 + [1] * 4
    write(given, tmp_path)
    again = [one for file in tmp_path.glob("*.yaml") for one in cells(read(file))]
    assert {one.cell for one in again} == {one.cell for one in both}
    assert len({one.cell for one in both}) == 8


@pytest.mark.parametrize("dataset", recipe.DATASETS)
def test_what_is_written_is_the_same_cell(tmp_path: Path, dataset: str) -> None:
    (one,) = cells({"dataset": dataset})
    write({"dataset": dataset}, tmp_path)
    (file,) = tmp_path.glob("*.yaml")
    (again,) = cells(read(file))
    assert again.cell == one.cell
    assert again.setting == one.setting
    values = dataclasses.asdict(one).items()
    (typed,) = cells({name: recipe.convert(name, value) for name, value in values})
    assert typed.cell == one.cell


def test_knobs_that_nothing_reads(tmp_path: Path) -> None:
    for knobs in ({"image_size": 16}, {"drop_path": 0.5}, {"tokenizer": "gpt2"}, {"pairs": 9}):
        ((name, value),) = knobs.items()
        with pytest.raises(ValueError, match=f"^{name} is {value!r}; allowed is .*digits-vit on"):
            cells({"dataset": "digits", **knobs})
    # One of two reads it: the other is as without.
    request = {"dataset": ["digits", "stdlib-pairs"], "pairs": 9}
    both = cells(request)
    assert [one.pairs for one in both] == [None, 9]
    assert both[0] == cells({"dataset": "digits"})[0]
    write(request, tmp_path)
    assert {one.cell for file in tmp_path.glob("*.yaml") for one in cells(read(file))} == {
        one.cell for one in both
    }


@pytest.mark.parametrize("models", [["digits-vit", "resnet18"], ["resnet18", "digits-vit"]])
def test_what_is_written_has_what_some_models_read(tmp_path: Path, models: list[str]) -> None:
    request = {"dataset": "cifar10", "model": models, "drop_path": 0.3}
    write(request, tmp_path)
    (file,) = tmp_path.glob("*.yaml")
    assert {one.cell for one in cells(read(file))} == {one.cell for one in cells(request)}


def test_the_same_cell_twice_is_one() -> None:
    assert len(cells({"seed": [0, 0], "activation": ["gelu", "crrelu", "gelu"]})) == 2
    with pytest.raises(ValueError, match=r"seed is \[\]; allowed are one value and more"):
        cells({"seed": []})


def test_every_knob_is_an_argument() -> None:
    for name in KNOBS:
        assert parse(f"--{name.replace('_', '-')}", "7") in ({name: 7}, {name: [7]})


def test_shipped_recipes() -> None:
    for dataset in recipe.DATASETS:
        assert (recipe.SHIPPED / f"{dataset}.yaml").exists()
        assert cells({"dataset": dataset})


def test_identity() -> None:
    one = Recipe()
    assert dataclasses.replace(one, data_dir="elsewhere", device="cpu").cell == one.cell
    assert dataclasses.replace(one, epochs=299).cell != one.cell
    other = dataclasses.replace(one, activation="gelu", seed=1)
    assert other.cell != one.cell
    assert other.setting == one.setting
    assert dataclasses.replace(one, eafo_trust=0.5).cell == one.cell


def test_the_knobs_of_dynamic_activations_are_part_of_these() -> None:
    """So that all have the same fixed ones beside them."""
    usual, fixed = cells({"dataset": "digits", "activation": ["dynamic-eafo", "gelu"], "seed": 0})
    assert usual.variant == "dynamic-eafo"
    trusting = dataclasses.replace(usual, eafo_trust=0.5, eafo_every=9)
    assert trusting.variant == "dynamic-eafo, eafo_every 9, eafo_trust 0.5"
    assert len({one.cell for one in (usual, fixed, trusting)}) == 3
    assert usual.setting == fixed.setting == trusting.setting
    assert dataclasses.replace(fixed, eafo_trust=0.5).variant == "gelu"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"epoch": 3}, "'epoch' is no knob; allowed are model, dataset"),
        ({"dataset": "mnist"}, "dataset is 'mnist'; allowed are digits"),
        ({"activation": "swish"}, "activation is 'swish'; allowed are crrelu"),
        ({"activation": "gelu:1"}, "a start is allowed for crrelu"),
        ({"activation": "crrelu:x"}, "after the colon comes a finite number"),
        ({"epochs": 0}, "epochs is 0; allowed are 1 and more"),
        ({"epochs": "many"}, "epochs is 'many'; allowed are values of type int"),
        ({"epochs": 2}, "warmup_epochs is 2.0; allowed are 0 to below epochs, which is 2"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; allowed are numbers above 0"),
        ({"accumulation": 3}, "accumulation is 3; allowed are divisors of batch_size"),
        ({"eafo_warmup": 3}, "eafo_warmup is 3; allowed are 4 and more"),
        (
            {"activation": "dynamic-eafo", "weights": "x.pt"},
            "weights is 'x.pt'; with activation 'dynamic-eafo' allowed .* elsewhere null",
        ),
        (
            {"activation": "dynamic-eafo", "dataset": "stdlib-pairs"},
            "weights is None; with activation 'dynamic-eafo' allowed are: in DPO a file",
        ),
        ({"device": "tpu"}, "device is 'tpu'; allowed are auto, cpu, cuda"),
        ({"compile": 1}, "compile is 1; allowed are values of type bool"),
    ],
)
def test_refusals(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cells({"dataset": "digits", **request_})


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "epochs\n- 3"])
def test_broken_yaml(tmp_path: Path, content: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"broken\.yaml"):
        read(file)
