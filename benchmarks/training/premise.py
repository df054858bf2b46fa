"""What EAFO supposes, measured: do low entropy, separate classes and accuracy go together?

Of the digits-vit models that a study has trained, on the test images; docs/training.md defines it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from . import activations, results
from .activations import Channels
from .build import build
from .files import append_line, held, read_lines
from .processes import Processes
from .results import Result
from .summary import decimal

FILE = "premise.jsonl"
BINS = 16
PAIRS = tuple(combinations(("entropy", "overlap", "accuracy"), 2))


@dataclass(frozen=True)
class Layer:
    """One activation layer of one trained model."""

    cell: str
    activation: str
    layer: str
    entropy: float | None
    """Differential, nats, the mean over the units without an atom; None where most have one."""
    atoms: float
    """The share of the units with one: so many equal outputs that the estimate is -∞."""
    overlap: float
    """Of the classes' histograms: the mean over the units and the pairs of classes."""
    accuracy: float
    """The model's."""


@dataclass(frozen=True)
class Correlation:
    """Of the ranks."""

    rho: float
    p: float
    models: int

    @property
    def text(self) -> str:
        return f"{decimal(self.rho, 2, '+')}, p {self.p:.2g}, {self.models}"


def run(study: Path) -> Iterator[str]:
    """Measures the cells that are not measured yet, and says so of each.

    Raises:
        ValueError: the study has no trained digits-vit. OSError: its files cannot be read.
        RuntimeError: another process is at it.
    """
    found = [
        one for one in results.read(study) if one.recipe.model == "digits-vit" and not one.diverged
    ]
    if not found:
        raise ValueError(f"STUDY is {str(study)!r}; allowed is one with trained digits-vit models")
    with held(study / ".lock"):
        measured = {layer.cell for layer in read(study)}
        for result in found:
            if result.recipe.cell not in measured:
                append_line(study / FILE, [asdict(layer) for layer in measure(result, study)])
                yield f"{result.recipe.cell}: measured"


def read(study: Path) -> list[Layer]:
    """What was measured.

    Raises:
        ValueError: the file is broken.
    """
    try:
        return [Layer(**layer) for line in read_lines(study / FILE) for layer in line]
    except TypeError as error:
        raise ValueError(f"{study / FILE} holds what is no layer: {error}") from error


def of(group: list[Result], layers: list[Layer]) -> list[Layer]:
    """Those of these results."""
    cells = {result.recipe.cell for result in group}
    return [layer for layer in layers if layer.cell in cells]


def measure(result: Result, study: Path) -> list[Layer]:
    """The layers of a trained model."""
    recipe = result.recipe
    task = build(recipe, Processes(torch.device("cpu")))
    weights = study / "cells" / recipe.cell / "weights.pt"
    task.model.load_state_dict(torch.load(weights, weights_only=True))
    kind = type(activations.parse(recipe.activation).module(Channels(1, -1)))
    images, labels = (torch.cat(parts) for parts in zip(*task.validation.batches(0), strict=True))
    layers = []
    for name, outputs in _outputs(task.model, kind, images).items():
        values = outputs.double().numpy()
        entropy, atoms = entropies(values.reshape(-1, values.shape[-1]))
        separation = overlap(values, labels.numpy())
        own = recipe.cell, recipe.variant, name
        layers.append(
            Layer(*own, entropy, atoms, separation, result.epochs[-1].metrics["accuracy"])
        )
    return layers


def entropies(values: np.ndarray) -> tuple[float | None, float]:
    """Of the columns of (samples, units), Vasicek's estimate: the mean, and the share that is -∞,
    which is left out."""
    with np.errstate(divide="ignore"):
        units = stats.differential_entropy(values, method="vasicek", axis=0)
    finite = np.isfinite(units)
    atoms = float(1 - finite.mean())
    return (float(units[finite].mean()) if atoms <= 0.5 else None), atoms


def overlap(values: np.ndarray, labels: np.ndarray) -> float:
    """The mean over units and pairs of classes of the sum over the bins of the smaller share.

    Bins hold equal parts of a unit's outputs of all classes, so that increasing functions leave the
    overlap as it is; equal outputs share a bin.

    Args:
        values: (images, patches, units). labels: (images,).
    """
    edges = np.quantile(values, np.arange(1, BINS) / BINS, axis=(0, 1))
    bins = sum((values >= edge).astype(np.int8) for edge in edges)
    shares = np.stack(
        [
            [(bins[labels == label] == number).mean((0, 1)) for number in range(BINS)]
            for label in np.unique(labels)
        ]
    )  # fmt: skip  (classes, bins, units)
    pairs = combinations(shares, 2)
    return float(np.mean([np.minimum(a, b).sum(0).mean() for a, b in pairs]))


def correlations(layers: list[Layer]) -> list[Correlation | None]:
    """Spearman's, for each of the pairs; None where fewer than three values differ."""
    found: list[Correlation | None] = []
    for a, b in PAIRS:
        points = [(getattr(layer, a), getattr(layer, b)) for layer in layers]
        xs, ys = ([p[i] for p in points if None not in p] for i in (0, 1))
        if min(len(set(xs)), len(set(ys))) < 3:
            found.append(None)
        else:
            rho, p = stats.spearmanr(xs, ys)
            found.append(Correlation(float(rho), float(p), len(xs)))
    return found


def _outputs(model: nn.Module, kind: type[nn.Module], images: Tensor) -> dict[str, Tensor]:
    """What the layers of that type give, by name: (images, patches, units)."""
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        found[name] = output.detach()

    for name, module in model.named_modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda *seen, name=name: keep(name, seen[-1]))
    model.eval()(images)  # with gradients, since torch's fused layers would call no hooks
    return found
