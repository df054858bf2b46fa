"""Cells, one after another, each with its result in one file; killed, it goes on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from . import checkpoint, dpo, results
from .build import build
from .diagnosis import Diverged
from .files import held
from .loop import Epoch, Watch, check_data, train
from .processes import Processes
from .recipe import PREFERENCES, Recipe
from .results import Result

Watching = Callable[[Recipe, int, int], Watch]


def run(
    folder: Path, recipes: list[Recipe], processes: Processes, watching: Watching
) -> Iterator[Result]:
    """Trains the cells that have no result yet; ``watching(recipe, number, of)`` shows one of them.

    Raises:
        RuntimeError: another process runs this study, or a file cannot be written.
        DataError, ValueError: a cell cannot be trained, or has a result of other data; those before
        it have their results.
    """
    with ExitStack() as stack:
        if processes.first:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(folder / ".lock"))
        done = results.read(folder)
        finished = processes.of_first({one.recipe.cell: one.recipe.data_dir for one in done})
        for number, recipe in enumerate(recipes, start=1):
            cell = folder / "cells" / recipe.cell
            if recipe.cell in finished:
                check_data(recipe, finished[recipe.cell], f"the result of {recipe.cell}")
                if processes.first:  # killed between the two lines below, it still has them
                    _drop_checkpoints(cell)
                continue
            cell.mkdir(parents=True, exist_ok=True)
            watch = watching(recipe, number, len(recipes))
            try:
                one = dpo.run if recipe.dataset in PREFERENCES else _train
                result = one(cell, recipe, processes, watch)
            finally:
                watch.close()
            if processes.first:
                results.append(folder, result)
                _drop_checkpoints(cell)
            yield result


def _drop_checkpoints(cell: Path) -> None:
    (cell / "checkpoint.pt").unlink(missing_ok=True)
    shutil.rmtree(cell / dpo.CHECKPOINTS, ignore_errors=True)


def _train(cell: Path, recipe: Recipe, processes: Processes, watch: Watch) -> Result:
    task = build(recipe, processes)
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    epochs: list[Epoch] = []
    diverged = None
    try:
        resume = cell / "checkpoint.pt"
        for epoch in train(task, recipe, processes, resume=resume, watch=watch):
            epochs.append(epoch)
        checkpoint.save_weights(cell / "weights.pt", task.model, processes)
    except Diverged as error:
        diverged = str(error)
    environment = results.environment(recipe, processes)
    return Result(recipe, epochs, diverged, task.unit, parameters, environment)
