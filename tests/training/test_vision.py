"""The models of timm, with every activation, through the loop that trains for real."""

# mypy: disable-error-code="union-attr, index"

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

timm = pytest.importorskip(
    "timm", reason="timm or torchvision is not installed", exc_type=ImportError
)

from benchmarks.training import vision  # noqa: E402
from benchmarks.training.activations import ACTIVATIONS, learned, parse  # noqa: E402
from benchmarks.training.loop import train  # noqa: E402
from benchmarks.training.recipe import Recipe, cells  # noqa: E402
from benchmarks.training.task import Batch, Everything, Indexed, Key, Task  # noqa: E402
from benchmarks.training.vision import Images  # noqa: E402

from .small import ALONE  # noqa: E402

CIFAR = Images(3, 32, 10)
MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"depth": 2, "embed_dim": 24},
    "deit_tiny_patch16_224": {"depth": 2, "embed_dim": 24},
    "deit_tiny_distilled_patch16_224": {"depth": 2, "embed_dim": 24},
    "tnt_s_patch16_224": {"depth": 1, "embed_dim": 24, "inner_dim": 8},
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_width": 8},
    "convnext_tiny": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
    "mobilenetv3_small_050": {},
}


class Noise:
    """Eight pictures of nothing."""

    def __init__(self, images: Images) -> None:
        self.shape = images

    def __len__(self) -> int:
        return 8

    def __getitems__(self, keys: list[Key]) -> Batch:
        generator = torch.Generator().manual_seed(len(keys))
        channels, size, _ = self.shape
        pictures = torch.randn(len(keys), channels, size, size, generator=generator)
        return pictures, torch.tensor([index % 10 for _, index in keys])


def step(model_name: str, **changes: Any) -> tuple[nn.Module, float]:
    """An epoch of two steps, through the same code as a run of days."""
    request = {
        "dataset": "cifar10", "model": model_name, "epochs": 1, "warmup_epochs": 0, "batch_size": 4,
        "model_args": MODELS.get(model_name, {}), **changes,
    }  # fmt: skip
    (recipe,) = cells(request)
    torch.manual_seed(recipe.seed)
    model = vision.build(recipe, parse(recipe.activation), CIFAR)
    loss = vision.objective(recipe, model, CIFAR)
    train_on = Indexed(Noise(CIFAR), ALONE, seed=0, batch_size=4)
    test_on = Everything(Noise(CIFAR), ALONE, batch_size=4)
    before = [parameter.clone() for parameter in model.parameters()]
    (epoch,) = train(Task(model, train_on, test_on, loss, vision.measure, "images"), recipe, ALONE)
    moved = [bool((a != b).any()) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
    assert epoch.metrics.keys() == {"loss", "accuracy"}
    return model, epoch.loss


@pytest.mark.parametrize("activation", ["crrelu", "crrelu-channel", "gelu"])
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, activation: str) -> None:
    model, loss = step(name, activation=activation)
    assert 1 < loss < 6
    epsilons = learned(model)
    assert bool(epsilons) == activation.startswith("crrelu")
    if activation == "crrelu-channel":
        assert all(len(values) >= 8 for values in epsilons.values())
    if activation != "gelu":
        assert not any(isinstance(m, nn.GELU | nn.ReLU) for m in model.modules())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str) -> None:
    step("vit_tiny_patch16_224", activation=activation)


def test_sizes() -> None:
    """The whole models, as they are for CIFAR and ImageNet."""
    recipe = Recipe(dataset="cifar10")
    vit = vision.build(recipe, parse("crrelu"), CIFAR)
    assert vit.patch_embed.num_patches == 64
    assert sum(p.numel() for p in vit.parameters()) == pytest.approx(5.4e6, rel=0.03)
    assert len(learned(vit)) == 12
    assert vit.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    large = vision.build(recipe, parse("crrelu"), Images(3, 224, 1000))
    assert large.patch_embed.num_patches == 196
    (resnet,) = cells({"dataset": "cifar10", "model": "resnet18"})
    small_steps = vision.build(resnet, parse("crrelu"), CIFAR)
    assert isinstance(small_steps.maxpool, nn.Identity)
    assert len(learned(small_steps)) == 17


def test_distillation(tmp_path: Path) -> None:
    name = "deit_tiny_distilled_patch16_224"
    teacher = "vit_tiny_patch16_224"
    (recipe,) = cells({"dataset": "cifar10", "model": teacher})
    weights = vision.from_timm(teacher, recipe, CIFAR).state_dict()
    torch.save(weights, tmp_path / "teacher.pt")
    taught = {"teacher": teacher, "teacher_weights": str(tmp_path / "teacher.pt")}
    _, alone = step(name)
    _, with_teacher = step(name, **taught)
    assert with_teacher != alone
    with pytest.raises(ValueError, match="the pretrained 'resnet18' knows 1000 classes"):
        step(name, teacher="resnet18")
    with pytest.raises(ValueError, match="allowed are models with a distillation token"):
        step("resnet18", **taught)


def test_resume_with_drop_path(tmp_path: Path) -> None:
    (recipe,) = cells(
        {"dataset": "cifar10", "epochs": 3, "warmup_epochs": 1, "batch_size": 4, "drop_path": 0.5,
         "model_args": {"depth": 2, "embed_dim": 24}, "checkpoint_every": 1}
    )  # fmt: skip
    losses: list[list[float]] = []
    for kept in (None, tmp_path / "checkpoint.pt", tmp_path / "checkpoint.pt"):
        torch.manual_seed(0)
        model = vision.build(recipe, parse("crrelu"), CIFAR)
        task = Task(
            model,
            Indexed(Noise(CIFAR), ALONE, seed=0, batch_size=4),
            Everything(Noise(CIFAR), ALONE, batch_size=4),
            vision.classify,
            vision.measure,
            "images",
        )
        run = train(task, recipe, ALONE, resume=kept)
        first = next(run)
        if kept is None or losses[1:]:
            losses.append([first.loss, *(epoch.loss for epoch in run)])
        else:
            losses.append([])  # broken off here
    assert losses[2] == losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name": "vit_tiny_patch17"}, "model is 'vit_tiny_patch17'; allowed are"),
        ({"model_name": "resnet18", "model_args": {"depht": 3}}, "model_args is .*depht"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        step(**changes)
