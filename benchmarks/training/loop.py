"""The training loop: AdamW, a warm-up, a cosine."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import nn
from torch.nn import functional as F

import crrelu_ext

from .data import Images, augment
from .model import VisionTransformer


@dataclass(frozen=True)
class Recipe:
    """What is the same for every activation and seed."""

    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of the steps


@dataclass(frozen=True)
class Epoch:
    """How one epoch went."""

    loss: float  # mean over the training batches, nats
    accuracy: float  # share of the test images, after the epoch
    images_per_second: float  # training alone
    epsilons: tuple[float, ...]  # of the CRReLU layers, first to last, after the epoch


def train(
    activation: Callable[[], nn.Module], seed: int, images: Images, recipe: Recipe
) -> Iterator[Epoch]:
    """Trains one model, epoch by epoch.

    The seed alone decides the initial weights, the order of the images and their augmentation,
    whatever the activation: making one draws no random numbers.
    """
    torch.manual_seed(seed)
    model = VisionTransformer(activation)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay))
    count = len(images.train_images)
    batches = count // recipe.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.learning_rate,
        total_steps=recipe.epochs * batches,
        pct_start=recipe.warmup,
        cycle_momentum=False,
    )
    for _ in range(recipe.epochs):
        model.train()
        losses = []
        start = perf_counter()
        order = torch.randperm(count, generator=generator)
        for batch in order[: batches * recipe.batch_size].split(recipe.batch_size):
            logits = model(augment(images.train_images[batch], generator))
            loss = F.cross_entropy(logits, images.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        seconds = perf_counter() - start
        yield Epoch(
            loss=torch.stack(losses).mean().item(),
            accuracy=accuracy(model, images),
            images_per_second=batches * recipe.batch_size / seconds,
            epsilons=tuple(
                layer.epsilon.mean().item()
                for layer in model.modules()
                if isinstance(layer, crrelu_ext.CRReLU)
            ),
        )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices only: it would draw epsilon, biases and norms to zero."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """The share of the test images that the model names right."""
    model.eval()
    return (model(images.test_images).argmax(1) == images.test_labels).double().mean().item()
