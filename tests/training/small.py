"""Recipes that take a second, and processes to kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.training import results, study
from benchmarks.training.loop import Epoch, Nobody
from benchmarks.training.processes import Processes
from benchmarks.training.recipe import Recipe, cells

ALONE = Processes(torch.device("cpu"))
# Dropout, so that chance in the model counts too.
VIT: dict[str, Any] = {
    "dataset": "digits",
    "model_args": {"width": 16, "hidden": 32, "depth": 2, "heads": 2, "dropout": 0.1},
    "epochs": 3,
    "warmup_epochs": 1,
    "steps_per_epoch": 4,
    "checkpoint_every": 1,
    "tensorboard": False,
}
# Dynamic EAFO that gets to work within a few steps.
EAFO: dict[str, Any] = {"eafo_every": 2, "eafo_warmup": 4}
GPT: dict[str, Any] = {
    "dataset": "stdlib",
    "model_args": {"n_embd": 16, "n_head": 2},
    "epochs": 2,
    "context": 64,
    "batch_size": 16,
    "steps_per_epoch": 2,
    "tensorboard": False,
}
# What a study imports on its way: torch its compiler, when an optimizer takes its first step.
IMPORTED = ["torch._dynamo", "sklearn.datasets"]


def recipe(kind: dict[str, Any], **changes: Any) -> Recipe:
    (one,) = cells({**kind, **changes})
    return one


def run_study(folder: Path, request: dict[str, Any]) -> None:
    """All of a study that has no result yet, as a process of its own would."""
    torch.set_num_threads(1)
    for _ in study.run(folder, cells(request), ALONE, lambda *_: Nobody()):
        pass


def count_events(folder: Path, request: dict[str, Any], kill_at: int | None = None) -> int:
    """Runs a study and counts the calls and returns of that, in Python and from there into C; at
    number ``kill_at`` this process kills itself.

    Not at a time: a study takes one second here and ten elsewhere.
    """
    for name in IMPORTED:
        import_module(name)
    events = 0

    def count(*_: object) -> None:
        nonlocal events
        events += 1
        if events == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    try:
        run_study(folder, request)
    finally:
        sys.setprofile(None)
    return events


def count_events_apart(folder: Path, request: dict[str, Any], kill_at: int | None = None) -> int:
    """As ``count_events`` in a process of its own.

    Raises:
        BrokenProcessPool: it was killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.small", *IMPORTED])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(count_events, folder, request, kill_at).result()


def without_times(epochs: list[Epoch]) -> list[tuple[Any, ...]]:
    """What must be the same bit for bit."""
    return [(epoch.loss, epoch.metrics, epoch.epsilons, epoch.updates) for epoch in epochs]


def outcome(folder: Path) -> dict[str, Any]:
    """By cell, all that does not depend on the clock."""
    return {one.recipe.cell: without_times(one.epochs) for one in results.read(folder)}
