"""Speed and memory of training with CRReLU, beside GELU and the formula as one would write it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from statistics import median, quantiles

import torch
from torch import Tensor, nn

from .build import build
from .loop import Epoch, train
from .processes import Processes, join
from .recipe import Recipe, cells
from .report import table
from .results import environment, facts
from .task import Batch, Source, Task

ACTIVATIONS = ("gelu", "crrelu", "crrelu-composed")
STEPS = 10
"""In a round."""


class FirstBatch:
    """As little validation as there can be: it is not measured."""

    steps = 1

    def __init__(self, source: Source) -> None:
        self._source = source

    def batches(self, epoch: int, first_step: int = 0) -> Iterable[Batch]:
        return islice(self._source.batches(epoch), 1)


def lines(datasets: list[str], rounds: int) -> Iterator[str]:
    """A table of Markdown for each dataset's own model.

    The activations take turns, a round of steps each, in the loop that trains for real; each round
    gives one ratio to GELU's speed. The first round, which warms up, does not count.

    Raises:
        ValueError: fewer than three rounds, of which there are no quartiles.
    """
    if rounds < 3:
        raise ValueError(f"rounds is {rounds}; allowed are 3 and more")
    for dataset in datasets:
        request = {"dataset": dataset, "activation": list(ACTIVATIONS), "seed": 0}
        limits = {"epochs": rounds + 1, "steps_per_epoch": STEPS, "warmup_epochs": 1}
        recipes = cells({**request, **limits})
        with join(recipes[0].device) as processes:
            yield f"{recipes[0].model} on {dataset}, {rounds} rounds of {STEPS} steps, computed on:"
            yield f"{facts(environment(recipes[0], processes))}."
            yield ""
            yield from _compare(recipes, processes)


def _compare(recipes: list[Recipe], processes: Processes) -> Iterator[str]:
    tasks = [build(recipe, processes) for recipe in recipes]
    kept = [saved_bytes(task, processes) for task in tasks]
    trainings = [
        train(replace(task, validation=FirstBatch(task.validation)), recipe, processes)
        for task, recipe in zip(tasks, recipes, strict=True)
    ]
    rounds = take_turns(trainings, recipes[0].epochs)
    rows = [
        (recipe.activation, *speed, f"{saved / 2**20:.2f}")
        for recipe, speed, saved in zip(recipes, beside_first(rounds[1:]), kept, strict=True)
    ]
    columns = (
        "activation",
        f"{tasks[0].unit}/s",
        "beside gelu",
        "half of the rounds",
        "saved, MiB",
    )
    yield from table(columns, rows)


def take_turns(trainings: list[Iterator[Epoch]], rounds: int) -> list[list[float]]:
    """The rates of an epoch each, round by round; another training begins each round."""
    places = range(len(trainings))
    found = []
    for number in range(rounds):
        order = [(number + place) % len(trainings) for place in places]
        rates = {place: next(trainings[place]).rate for place in order}
        found.append([rates[place] for place in places])
    return found


def beside_first(rounds: list[list[float]]) -> Iterator[tuple[str, str, str]]:
    """Of each training the median rate, and of its ratios to the first one's rate in the same round
    the median and the quartiles."""
    for rates in zip(*rounds, strict=True):
        ratios = [rate / first for rate, (first, *_) in zip(rates, rounds, strict=True)]
        low, middle, high = quantiles(ratios, n=4, method="inclusive")
        yield f"{median(rates):,.0f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}"


def saved_bytes(task: Task, processes: Processes) -> int:
    """What a forward pass keeps for the backward pass beside the parameters."""
    model = task.model.to(processes.device)
    parameters = {_address(parameter) for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _address(tensor) not in parameters:
            kept[_address(tensor)] = tensor
        return tensor

    batch = next(iter(task.train.batches(0)))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        task.loss(model, tuple(x.to(processes.device) for x in batch))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _address(tensor: Tensor | nn.Parameter) -> int:
    return tensor.untyped_storage().data_ptr()
