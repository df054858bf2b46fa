"""``python -m crrelu_ext.eafo``: derives activations, prints tables and draws pictures."""

from __future__ import annotations

import argparse
import importlib
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from crrelu_ext.eafo import plots
from crrelu_ext.eafo.densities import as_density
from crrelu_ext.eafo.from_model import from_model
from crrelu_ext.eafo.functionals import compare, output_entropy, worst_activation
from crrelu_ext.eafo.improve import improve
from crrelu_ext.eafo.names import ACTIVATIONS, parse_activation, parse_density

Result = tuple[Table, str, Callable[[], Figure]]
"""The table, and the picture: its file's name, and what draws it."""
console = Console(markup=False, emoji=False)  # a name may have brackets and colons


def number(value: float | None) -> str:
    """For a table."""
    return "" if value is None else f"{value:.5g}"


def table_of(*columns: str, title: str, notes: Sequence[str | None] = ()) -> Table:
    """An empty table with notes below it; narrow, for a terminal has 80 columns."""
    caption = "\n".join(note for note in notes if note)
    table = Table(
        title=title,
        caption=caption,
        caption_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def improve_command(arguments: argparse.Namespace) -> Result:
    f, density = parse_activation(arguments.activation), parse_density(arguments.density)
    with console.status("descending"):
        result = improve(
            f,
            density,
            steps=arguments.steps,
            step_size=arguments.step_size,
            fixed_variance=arguments.fixed_variance,
            functions=arguments.functions,
        )
    table = table_of(
        *("step", "C", "slope", "H before", "H after", "margin", "tail", "error"),
        title=f"{arguments.activation} under {arguments.density}",
        notes=[result.stopped],
    )
    for row, step in enumerate(result.steps, start=1):
        values = (step.step_size, step.slope, step.entropy_before, step.entropy_after, step.margin)
        errors = (f"{step.tail_mass:.1e}", f"{step.error:.1e}")
        table.add_row(str(row), *map(number, values), *errors)
    return table, "improve.png", lambda: plots.improvement(f, result, density)


def worst_command(arguments: argparse.Namespace) -> Result:
    density = parse_density(arguments.density)
    f = worst_activation(density, arguments.lower, arguments.upper)
    entropy = f"H = {output_entropy(f, density):.6g} nats"
    title = f"worst activation under {arguments.density}"
    table = table_of("x", "f(x)", title=title, notes=[entropy])
    for x in plots.points(as_density(density))[::75]:
        table.add_row(f"{x.item():.8g}", f"{f(x).item():.6f}")
    return table, "worst.png", lambda: plots.worst(f, density)


def compare_command(arguments: argparse.Namespace) -> Result:
    density = parse_density(arguments.density)
    names = [name.strip() for name in arguments.activations.split(",")]
    activations = {name: parse_activation(name) for name in names}
    with console.status("comparing"):
        rows = compare(activations, density)
    table = table_of(
        *("activation", "H", "error", "variance", "H - ½ log var", "slope"),
        title=f"activations under {arguments.density}",
        notes=[row.refusal and f"{row.name}: {row.refusal}" for row in rows],
    )
    for row in rows:
        error = "" if row.error is None else f"{row.error:.1e}"
        table.add_row(
            row.name,
            number(row.entropy),
            error,
            *map(number, (row.variance, row.scale_free_entropy, row.slope)),
        )
    return table, "compare.png", lambda: plots.comparison(activations, density)


def from_model_command(arguments: argparse.Namespace) -> Result:
    model = load_model(arguments.model)
    try:
        batch = torch.load(arguments.batch, weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        why = str(error) or "it ends too early"
        raise ValueError(f"batch {arguments.batch} is not what torch.save writes: {why}") from None
    with console.status("measuring"):
        try:
            layers = from_model(model, batch, steps=arguments.steps)
        except ValueError:
            raise
        except Exception as error:  # the model's own
            given, what = type(batch).__name__, f"{type(error).__name__}: {error}"
            raise ValueError(f"model(batch) failed on the batch, a {given}: {what}") from error
    table = table_of(
        *("layer", "activation", "negentropy", "H", "H improved"),
        title=arguments.model,
        notes=[layer.refusal and f"{layer.name}: {layer.refusal}" for layer in layers],
    )
    for layer in layers:
        improved = layer.improvement.steps if layer.improvement else ()
        table.add_row(
            layer.name,
            type(layer.activation).__name__,
            number(layer.negentropy),
            number(layer.entropy),
            number(improved[-1].entropy_after if improved else None),
        )
    return table, "layers.png", lambda: plots.layers(layers)


def load_model(text: str) -> nn.Module:
    """The module that ``package.module:name`` is, or that calling it without arguments returns.

    Raises:
        ValueError: it is none.
    """
    module, _, name = text.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
        model = found if isinstance(found, nn.Module) else found()
    except Exception as error:  # whatever making it may raise
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"model is {text!r}; allowed is MODULE:NAME. {what}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model {text!r} has type {type(model).__name__}; allowed is a torch.nn.Module"
        )
    return model


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(prog="python -m crrelu_ext.eafo", description=__doc__)
    commands = main.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(function=function)
        added.add_argument("--out", type=Path, metavar="FOLDER", help="where to write the picture")
        return added

    def add_density(command: argparse.ArgumentParser) -> None:
        command.add_argument("--density", default="normal(0,1)", help="default: %(default)s")

    def add_steps(command: argparse.ArgumentParser) -> None:
        command.add_argument("--steps", type=int, default=1, help="default: %(default)s")

    improve = command("improve", improve_command, "lower the entropy of an activation's output")
    improve.add_argument("--activation", required=True, help=", ".join(ACTIVATIONS))
    add_density(improve)
    add_steps(improve)
    help = "default: half the bound; with --functions, what would lower H by 0.3"
    improve.add_argument("--step-size", type=float, metavar="C", help=help)
    improve.add_argument("--fixed-variance", action="store_true", help="gain nothing by scale")
    help = "keep to so many smooth functions, with which many steps can be taken"
    improve.add_argument("--functions", type=int, metavar="N", help=help)

    worst = command("worst", worst_command, "the activation with the largest entropy")
    add_density(worst)
    worst.add_argument("--lower", type=float, default=-1.0, help="default: %(default)s")
    worst.add_argument("--upper", type=float, default=1.0, help="default: %(default)s")

    compare = command("compare", compare_command, "the entropies of several activations")
    compare.add_argument("--activations", default=",".join(ACTIVATIONS), metavar="NAME,...")
    add_density(compare)

    model = command("from-model", from_model_command, "the activation layers of a network")
    help = "a torch.nn.Module, or what returns one"
    model.add_argument("--model", required=True, metavar="MODULE:NAME", help=help)
    model.add_argument("--batch", required=True, type=Path, help="its input, by torch.save")
    add_steps(model)
    return main


def main(command_line: Sequence[str] | None = None) -> int:
    """Prints a table and writes a picture; returns 1 if there is no table to print, else 0."""
    arguments = parser().parse_args(command_line)
    try:
        table, name, draw = arguments.function(arguments)
        console.print(table)
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            draw().savefig(arguments.out / name, dpi=120)
            console.print(f"Picture: {arguments.out / name}", soft_wrap=True)
    except (ValueError, OSError) as error:
        console.print(Text.assemble(("Refused:", "red"), f" {error}"), soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
