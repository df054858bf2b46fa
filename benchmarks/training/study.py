"""Cells, one after another, each with its result in one file; killed, it goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from . import checkpoint, dpo, results
from .build import build
from .diagnosis import Diverged
from .files import held
from .loop import Epoch, Watch, train
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
        DataError, ValueError: a cell cannot be trained; those before it have their results.
    """
    with ExitStack() as stack:
        if processes.first:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(folder / ".lock"))
        finished = processes.of_first({result.recipe.cell for result in results.read(folder)})
        for number, recipe in enumerate(recipes, start=1):
            cell = folder / "cells" / recipe.cell
            if recipe.cell in finished:
                if processes.first:  # killed between the two lines below, it still has one
                    (cell / "checkpoint.pt").unlink(missing_ok=True)
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
                (cell / "checkpoint.pt").unlink(missing_ok=True)
            yield result


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
