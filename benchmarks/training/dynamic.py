"""Dynamic EAFO in a training run: its scheduler, what it did, and its state in a checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from crrelu_ext import ActivationScheduler

from . import activations, controls
from .processes import Processes
from .recipe import Recipe

STEPS = {"dynamic-reversed": controls.opposite, "dynamic-random": controls.random}
"""Activations that change by other steps than those of EAFO: by what becomes of these."""

KEPT = "dynamic-kept"
"""The function that dynamic EAFO starts with, in the input's scale, as it is after the warm-up."""

CONTROLS = (KEPT, *STEPS)


def scheduler(recipe: Recipe, model: nn.Module, steps: int) -> ActivationScheduler | None:
    """What derives the model's activations anew, by the recipe, until the last of its epochs of so
    many steps; None if they are not dynamic.

    Raises:
        RuntimeError: there are no native kernels.
    """
    if not activations.parse(recipe.activation).dynamic:
        return None
    options: dict[str, Any] = {
        "every": recipe.eafo_every,
        "warmup": recipe.eafo_warmup,
        "total": max(recipe.epochs * steps, recipe.eafo_warmup),
        "trust": recipe.eafo_trust,
    }
    if recipe.activation == KEPT:
        options["total"] = recipe.eafo_warmup
    if instead := STEPS.get(recipe.activation):
        return controls.Control(model, instead=instead, seed=recipe.seed, **options)
    return ActivationScheduler(model, **options)


def updates(scheduler: ActivationScheduler, after: int) -> dict[str, list[dict[str, Any]]]:
    """By layer, the fields of the updates after that step."""
    return {
        name: [asdict(update) for update in history if update.step > after]
        for name, history in scheduler.history.items()
    }


def state(scheduler: ActivationScheduler, processes: Processes) -> dict[str, Any]:
    """Plain data from which any number of processes can go on: the counts are their sums."""
    state = scheduler.state_dict()
    state["counts"] = {
        name: processes.sum(counts).cpu() for name, counts in state["counts"].items()
    }
    return state


def load_state(scheduler: ActivationScheduler, state: dict[str, Any], processes: Processes) -> None:
    """Goes on from there; the first process has all the counts, as the scheduler adds them up.

    Raises:
        ValueError: it is that of a model with other dynamic layers.
    """
    scheduler.load_state_dict(state)
    if not processes.first:
        for layer in scheduler.layers.values():
            layer.histogram.counts.zero_()
