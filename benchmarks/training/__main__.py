"""The command line: ``python -m benchmarks.training run STUDY``, ``... report STUDY``, and more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from . import premise, recipe, report, study, throughput
from .loop import Nobody, Watch
from .processes import join
from .progress import Terminal
from .task import DataError

console = Console()


def run(arguments: argparse.Namespace) -> int:
    """Trains what has no result yet; 1 if a loss stopped being a number."""
    given = {name: value for name, value in vars(arguments).items() if name in recipe.KNOBS}
    request = {**(recipe.read(arguments.config) if arguments.config else {}), **given}
    recipes = recipe.cells(request)
    folder: Path = arguments.study

    def watching(one: recipe.Recipe, number: int, of: int) -> Watch:
        return Terminal(one, number, of, folder, console) if processes.first else Nobody()

    trained, diverged = 0, False
    with join(recipes[0].device) as processes:
        if processes.first:
            folder.mkdir(parents=True, exist_ok=True)
            recipe.write(request, folder)
        for result in study.run(folder, recipes, processes, watching):
            trained += 1
            if result.diverged and processes.first:
                console.print(result.diverged, style="red", markup=False)
            diverged |= result.diverged is not None
        if not trained and processes.first:
            text = f"Nothing to train: {folder} has the results of all {len(recipes)} cells."
            console.print(text, markup=False, soft_wrap=True)
    return int(diverged)


def examine(arguments: argparse.Namespace) -> int:
    """Measures the layers of the trained digits-vit models that are not measured yet."""
    for line in premise.run(arguments.study):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def show(arguments: argparse.Namespace) -> int:
    """Writes the report, and prints where it is."""
    page = report.write(arguments.study, arguments.out or arguments.study)
    console.print(page.read_text(), markup=False, highlight=False, soft_wrap=True)
    console.print(f"Report: {page}", markup=False, soft_wrap=True)
    return 0


def measure(arguments: argparse.Namespace) -> int:
    """Prints speed and memory of training beside GELU's."""
    for line in throughput.lines(arguments.dataset, arguments.rounds):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments, every knob among them."""
    top = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "run",
        help="train the cells of a study that have no result yet",
        description="Trains each combination of model, dataset, activation and seed. Values are "
        "written as in YAML (null for none); what is not given takes the dataset's default in "
        "benchmarks/training/recipes, then the published one.",
    )
    command.add_argument("study", type=Path, metavar="STUDY", help="the folder of the study")
    command.add_argument("--config", type=Path, metavar="FILE", help="a YAML file of knobs")
    recipe.add_arguments(command)
    command.set_defaults(command=run)
    command = commands.add_parser(
        "premise", help="entropy and separation in each layer of the trained digits-vit models"
    )
    command.add_argument("study", type=Path, metavar="STUDY", help="the folder of the study")
    command.set_defaults(command=examine)
    command = commands.add_parser("report", help="tables and curves of a study")
    command.add_argument("study", type=Path, metavar="STUDY", help="the folder of the study")
    command.add_argument("--out", type=Path, metavar="FOLDER", help="default: the study's")
    command.set_defaults(command=show)
    command = commands.add_parser("throughput", help="speed and memory of training beside GELU's")
    command.add_argument("--rounds", type=int, default=20, metavar="N", help="default: %(default)s")
    command.add_argument("--dataset", nargs="+", default=["digits", "stdlib"],
                         choices=["digits", "stdlib"])  # fmt: skip
    command.set_defaults(command=measure)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status."""
    chosen = parser().parse_args(arguments)
    try:
        return chosen.command(chosen)
    except (ValueError, RuntimeError, ImportError, OSError, DataError) as error:
        text = str(error)
        if isinstance(error, DataError):  # of a loader's worker it is behind a whole traceback
            text = text.rpartition(f"{DataError.__name__}: ")[2].rstrip()
        console.print(text, style="red", markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print("Stopped. The same command goes on from the last checkpoint.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
