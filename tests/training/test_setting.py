"""What is said to be equal in a table, and what not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.training.results import Result
from benchmarks.training.setting import description, headings
from benchmarks.training.summary import settings

from .test_report import result


def having(one: Result, **knobs: Any) -> Result:
    return replace(one, recipe=replace(one.recipe, **knobs))


def test_headings() -> None:
    """With the knobs that tell one from another, and no others."""
    one = result("gelu", 0, 0.9)
    found = [one, having(one, learning_rate=1e-3), having(one, learning_rate=1e-3, clip=None),
             having(one, dataset="cifar100", beta1=0.8)]  # fmt: skip
    assert headings(settings(found)) == [
        "vit_tiny_patch16_224 on cifar10, learning_rate 0.00025, clip 1.0",
        "vit_tiny_patch16_224 on cifar10, learning_rate 0.001, clip 1.0",
        "vit_tiny_patch16_224 on cifar10, learning_rate 0.001, clip None",
        "vit_tiny_patch16_224 on cifar100",
    ]


def test_other_than_published() -> None:
    """No knobs that cannot change the results; those of dynamic EAFO are its cells' alone."""
    gelu = replace(result("gelu", 0, 0.9), parameters=1234)
    eafo = [having(result("dynamic-eafo", seed, 0.9), eafo_every=50 * seed) for seed in (1, 2)]
    free = {"checkpoint_every": 7, "data_dir": "data", "device": "cpu"}
    own = "model vit_tiny_patch16_224, dataset cifar10, epochs 30"
    first, *_ = description([having(gelu, **free, eafo_every=3)])
    assert first == f"Other than published: {own}. 1,234 parameters."
    first, *_ = description([gelu, *eafo])
    assert first == f"Other than published: {own}, eafo_every 50 or 100. 5 to 1,234 parameters."


def test_what_it_was_computed_on() -> None:
    group = [result(name, seed, 0.9) for name in ("crrelu", "gelu") for seed in (0, 1)]
    _, *alike = description(group)
    assert alike == ["Computed on: device cpu.", ""]
    group[1] = replace(group[1], environment={"device": "cpu", "threads": "2"})
    _, *unlike = description(group)
    assert unlike == [
        "",
        "**The cells were not computed on the same**, and may differ by that as well:",
        "",
        "- crrelu seed 0; gelu seed 0, 1: device cpu.",
        "- crrelu seed 1: device cpu; threads 2.",
        "",
    ]
