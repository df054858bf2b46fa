"""The digits transformer with three activations, trained side by side."""

from collections.abc import Callable, Iterator

import torch

from .training import results
from .training.build import build
from .training.loop import Epoch, train
from .training.processes import Processes
from .training.recipe import Recipe, cells
from .training.results import Result

ACTIVATIONS = {"crrelu": "CRReLU", "gelu": "GELU", "relu": "ReLU"}


def recipes(quick: bool) -> list[Recipe]:
    """The cells, seed by seed."""
    request = {"dataset": "digits", "activation": list(ACTIVATIONS), "device": "cpu"}
    if quick:
        return cells({**request, "seed": 0, "epochs": 6, "warmup_epochs": 1})
    return cells({**request, "seed": [0, 1, 2]})


def run(recipes: list[Recipe], on_epoch: Callable[[], object]) -> list[Result]:
    """Trains all cells; ``on_epoch()`` is called after each epoch of each.

    The models of one seed take turns, an epoch each: what else happens on the machine slows all of
    them alike.
    """
    alone = Processes(torch.device("cpu"))
    found: list[Result] = []
    for seed in dict.fromkeys(recipe.seed for recipe in recipes):
        same_seed = [recipe for recipe in recipes if recipe.seed == seed]
        trainings: list[tuple[Result, Iterator[Epoch]]] = []
        for recipe in same_seed:
            task = build(recipe, alone)
            count = sum(parameter.numel() for parameter in task.model.parameters())
            environment = results.environment(recipe, alone)
            result = Result(recipe, [], None, task.unit, count, environment)
            trainings.append((result, train(task, recipe, alone)))
        for _ in range(same_seed[0].epochs):
            for result, training in trainings:
                result.epochs.append(next(training))
                on_epoch()
        found += [result for result, _ in trainings]
    return found
