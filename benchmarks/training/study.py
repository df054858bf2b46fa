"""The comparison: every activation with every seed, everything else equal."""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import mean, median, stdev

from torch import nn

import crrelu_ext

from . import data
from .loop import Epoch, Recipe, train

ACTIVATIONS = {"CRReLU": crrelu_ext.CRReLU, "GELU": nn.GELU, "ReLU": nn.ReLU}


@dataclass(frozen=True)
class Run:
    """One training run; the accuracy that counts is the last epoch's, not the best one's."""

    activation: str
    seed: int
    epochs: list[Epoch] = field(default_factory=list)


def run(recipe: Recipe, seeds: int, on_epoch: Callable[[], object]) -> list[Run]:
    """All runs; ``on_epoch()`` is called after each epoch of each model.

    The models of one seed train side by side, an epoch each in turn: what else happens on the
    machine slows all of them alike.
    """
    images = data.load()
    runs = []
    for seed in range(seeds):
        side_by_side = [Run(name, seed) for name in ACTIVATIONS]
        runs += side_by_side
        trainings = [train(make, seed, images, recipe) for make in ACTIVATIONS.values()]
        for _ in range(recipe.epochs):
            for one, training in zip(side_by_side, trainings, strict=True):
                one.epochs.append(next(training))
                on_epoch()
    return runs


@dataclass(frozen=True)
class Summary:
    """One activation over its seeds; deviations are those of the sample, 0.0 for a single seed."""

    activation: str
    accuracy: float
    accuracy_deviation: float
    images_per_second: float  # median over all epochs
    speedup: float  # images/s beside CRReLU's in the same epoch of the same seed, median
    epsilons: tuple[float, ...]  # per layer, mean over the seeds


def summarize(runs: list[Run]) -> dict[str, Summary]:
    """The summaries by activation."""
    own = {name: [run for run in runs if run.activation == name] for name in ACTIVATIONS}
    speeds = {
        name: [epoch.images_per_second for run in own[name] for epoch in run.epochs]
        for name in ACTIVATIONS
    }
    summaries = {}
    for name in ACTIVATIONS:
        last = [run.epochs[-1] for run in own[name]]
        accuracies = [epoch.accuracy for epoch in last]
        summaries[name] = Summary(
            activation=name,
            accuracy=mean(accuracies),
            accuracy_deviation=stdev(accuracies) if len(accuracies) > 1 else 0.0,
            images_per_second=median(speeds[name]),
            speedup=median(
                speed / crrelu for speed, crrelu in zip(speeds[name], speeds["CRReLU"], strict=True)
            ),
            epsilons=tuple(
                mean(layer) for layer in zip(*(epoch.epsilons for epoch in last), strict=True)
            ),
        )
    return summaries
