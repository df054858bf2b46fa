"""The training loop: its schedule, what it can be resumed from, and where it stops."""

from __future__ import annotations

import copy
import math
import resource
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from benchmarks.training.build import build
from benchmarks.training.diagnosis import Diverged
from benchmarks.training.loop import Nobody, learning_rate, train
from benchmarks.training.recipe import Recipe

from .small import ALONE, EAFO, GPT, VIT, recipe, without_times


class Killed(BaseException):
    """In the place of a signal, at a step of choice."""


class Killer(Nobody):
    def __init__(self, at: int) -> None:
        self.left = at

    def step(self, epoch: int, step: int, steps: int, loss: float, rate: float) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1


def weights(one: Recipe, resume: Path | None = None, kill_at: int | None = None) -> Any:
    task = build(one, ALONE)
    watch = None if kill_at is None else Killer(kill_at)
    epochs = list(train(task, one, ALONE, resume=resume, watch=watch))
    return without_times(epochs), task.model.state_dict()


@pytest.mark.parametrize(
    ("kind", "activation"),
    [(VIT, "crrelu"), (GPT, "crrelu"), (VIT, "dynamic-eafo")],
    ids=["digits", "stdlib", "dynamic"],
)
def test_resume_bit_for_bit(tmp_path: Path, kind: dict[str, Any], activation: str) -> None:
    """Killed in the middle of an epoch, at its end, and again; with parts of a batch, too."""
    one = recipe(kind, **EAFO, activation=activation, accumulation=2, checkpoint_every=1)
    expected, expected_weights = weights(one)
    assert bool(expected[-1][3]) == (activation == "dynamic-eafo")
    file = tmp_path / "checkpoint.pt"
    for steps in (3, 0, 0, 1, 9):
        try:
            got, got_weights = weights(one, file, steps)
            break
        except Killed:
            assert file.exists()
    assert got == expected
    assert got_weights.keys() == expected_weights.keys()
    for name, value in got_weights.items():
        assert torch.equal(value, expected_weights[name]), name


def test_checkpoint_is_plain_data(tmp_path: Path) -> None:
    one = recipe(VIT)
    weights(one, tmp_path / "checkpoint.pt")
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(content["position"]["epochs"]) == 2
    assert len(content["position"]["losses"]) == 4


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_broken_checkpoint(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"checkpoint\.pt cannot be used.*Remove it"):
        weights(recipe(VIT), file)


def test_full_disk(tmp_path: Path) -> None:
    """The last checkpoint stays, and the run goes on from it once there is room."""
    one = recipe(VIT, epochs=2)
    expected, _ = weights(one)
    file = tmp_path / "checkpoint.pt"
    with pytest.raises(Killed):
        weights(one, file, kill_at=3)
    whole = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(RuntimeError, match=r"cannot be written.*make room"):
            weights(one, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [file]
    assert weights(one, file)[0] == expected


def test_learning_rate() -> None:
    one = Recipe()
    assert learning_rate(one, 0) == 1e-6
    assert learning_rate(one, 10) == pytest.approx((1e-6 + 2.5e-4) / 2)
    assert learning_rate(one, 20) == 2.5e-4
    assert learning_rate(one, 160) == pytest.approx((1e-5 + 2.5e-4) / 2)
    assert learning_rate(one, 300) == pytest.approx(1e-5)


WITHOUT_CHANCE = {"model_args": {**VIT["model_args"], "dropout": 0.0}}


def test_steps_are_those_of_plain_pytorch() -> None:
    """Betas, clipping, the rate of each step, and no weight decay of what has one dimension."""
    changes = {"epochs": 1, "warmup_epochs": 0, "clip": 0.1, "beta1": 0.8, "beta2": 0.9}
    one = recipe(VIT, **WITHOUT_CHANCE, **changes, weight_decay=5.0, learning_rate=0.01)
    task = build(one, ALONE)
    model = copy.deepcopy(task.model).train()
    decayed, spared = (
        [p for p in model.parameters() if (p.dim() > 1) == matrices] for matrices in (True, False)
    )
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 5.0}, {"params": spared, "weight_decay": 0.0}],
        betas=(0.8, 0.9),
    )
    norms = []
    for step, batch in enumerate(task.train.batches(0, 0)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(one, step / task.train.steps)
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.1))
        optimizer.step()
    assert len(norms) == task.train.steps
    assert min(norms) > 0.1
    list(train(task, one, ALONE))
    for name, value in model.state_dict().items():
        if "in_proj_bias" not in name:  # the keys' has no gradient but rounding errors
            assert_close(task.model.state_dict()[name], value, msg=name)


def test_metrics_are_means_over_all_samples() -> None:
    one = recipe(VIT, epochs=1, warmup_epochs=0)
    task = build(one, ALONE)
    (epoch,) = train(task, one, ALONE)
    batches = list(task.validation.batches(0))
    assert len({len(batch[0]) for batch in batches}) > 1  # so that means of batches would not do
    sums = [task.measure(task.model.eval(), batch) for batch in batches]
    for name, value in epoch.metrics.items():
        total = sum(one[name].item() for one in sums)
        assert value == pytest.approx(total / sum(one["count"].item() for one in sums), rel=1e-5)


def test_parts_of_a_batch_make_the_whole() -> None:
    whole, _ = weights(recipe(VIT, **WITHOUT_CHANCE))
    parts, _ = weights(recipe(VIT, **WITHOUT_CHANCE, accumulation=4))
    assert [epoch[0] for epoch in parts] == pytest.approx([epoch[0] for epoch in whole], rel=1e-4)


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_lower_precision(amp: str) -> None:
    got, state = weights(recipe(VIT, amp=amp, epochs=1, warmup_epochs=0))
    assert math.isfinite(got[0][0])
    assert all(value.dtype == torch.float32 for value in state.values())


def test_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = partialmethod(nn.Module.compile, backend="eager")  # all but the compilers
    monkeypatch.setattr(nn.Module, "compile", quick)
    one = recipe(GPT, compile=True, epochs=1, warmup_epochs=0, steps_per_epoch=1)
    eager = recipe(GPT, epochs=1, warmup_epochs=0, steps_per_epoch=1)
    assert weights(one)[0][0][0] == pytest.approx(weights(eager)[0][0][0], rel=1e-4)


def test_nan_on_the_validation_data_says_where() -> None:
    """As of a model that the last step breaks."""
    one = recipe(VIT, learning_rate=1e30, clip=None, warmup_epochs=0, epochs=1, steps_per_epoch=1)
    with pytest.raises(Diverged, match="The validation loss is nan after epoch 1"):
        list(train(build(one, ALONE), one, ALONE))


def test_nan_says_where() -> None:
    one = recipe(VIT)
    task = build(one, ALONE)
    weight = task.model.get_parameter("encoder.layers.1.linear1.weight")

    class Break(Nobody):
        def step(self, epoch: int, step: int, steps: int, loss: float, rate: float) -> None:
            if (epoch, step) == (1, 2):
                with torch.no_grad():
                    weight[0, 0] = math.inf

    with pytest.raises(Diverged) as caught:
        list(train(task, one, ALONE, watch=Break()))
    message = str(caught.value)
    assert "epoch 2, step 3 of 4, learning rate 0.00" in message
    assert "encoder.layers.1.linear1 (Linear), whose weights are not finite" in message
