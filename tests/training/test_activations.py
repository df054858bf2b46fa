"""Every activation in the models that need no package beside the usual."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.training.activations import ACTIVATIONS, learned, parse, place
from benchmarks.training.build import build
from benchmarks.training.loop import train
from crrelu_ext import CRReLU

from .small import ALONE, EAFO, GPT, VIT, recipe


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("kind", [VIT, GPT], ids=["digits", "stdlib"])
def test_training_steps(kind: dict[str, object], name: str) -> None:
    one = recipe(kind, **EAFO, activation=name, epochs=1, warmup_epochs=0, steps_per_epoch=7)
    task = build(one, ALONE)
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    (epoch,) = train(task, one, ALONE)
    assert 0 < epoch.loss < 8
    assert epoch.rate > 0
    changed = [
        key for key, value in task.model.state_dict().items() if (value != before[key]).any()
    ]
    assert len(changed) > len(before) / 2
    measured = {key for key in before if key.endswith(("table", "place"))}
    per_layer = 1 if name == "dynamic-crrelu" else 2  # its place alone; no table
    assert len(measured) == 2 * per_layer * name.startswith("dynamic")
    assert measured <= set(changed)
    assert len(epoch.updates) == 2 * name.startswith("dynamic")
    for updates in epoch.updates.values():
        assert [update["step"] for update in updates] == [6] * (name != "dynamic-kept")
    epsilons = [key for key in before if key.endswith("epsilon")]
    assert len(epsilons) == 2 * ("crrelu" in name)
    assert set(epsilons) <= set(changed)
    assert len(epoch.epsilons) == len(epsilons)
    hidden = 32 if kind is VIT else 64
    wanted = hidden if name == "crrelu-channel" else 1
    assert all(len(values) == wanted for values in epoch.epsilons.values())


def test_one_start_for_all_activations() -> None:
    """The weights that are not the activation's are the same, to the bit."""
    states = [
        build(recipe(VIT, activation=name, seed=3), ALONE).model.state_dict()
        for name in ("gelu", "crrelu-channel:-0.5", "prelu")
    ]
    for key, value in states[0].items():
        assert all(torch.equal(state[key], value) for state in states)


def test_channels_are_found_where_they_lie() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 5, 1),
        nn.GELU(),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(2),
        nn.Linear(16, 7),
        nn.SiLU(),
    )
    place(model, parse("crrelu-channel:-0.25"), torch.zeros(1, 3, 4, 4))
    found = [module for module in model if isinstance(module, CRReLU)]
    assert [(len(m.epsilon), m.channel_dim) for m in found] == [(5, 1), (5, 1), (7, -1)]
    assert learned(model)["1"] == [-0.25] * 5
    assert model.training
    model(torch.randn(2, 3, 4, 4)).sum().backward()


def test_models_without_activation_modules() -> None:
    with pytest.raises(ValueError, match="Linear, which has no activation modules"):
        place(nn.Linear(2, 2), parse("crrelu"), torch.zeros(1, 2))
