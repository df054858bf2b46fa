"""What became of the cells of a study: one line of JSON each, in one file."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import crrelu_ext

from .files import append_line, read_lines
from .loop import Epoch, precision
from .processes import Processes
from .recipe import Recipe, convert

FILE = "results.jsonl"


@dataclass(frozen=True)
class Result:
    """One cell."""

    recipe: Recipe
    epochs: list[Epoch]
    diverged: str | None  # where, if the loss stopped being a number
    unit: str  # what the rates count
    parameters: int
    environment: dict[str, str]


def read(folder: Path) -> list[Result]:
    """The finished cells of a study.

    Raises:
        ValueError: the file is broken; the message says at which line.
    """
    found = []
    for number, line in enumerate(read_lines(folder / FILE), start=1):
        try:
            knobs = {name: convert(name, value) for name, value in line["recipe"].items()}
            recipe, epochs = Recipe(**knobs), [Epoch(**one) for one in line["epochs"]]
            found.append(Result(**{**line, "recipe": recipe, "epochs": epochs}))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / FILE}, line {number} is no result: {error}") from error
    return found


def append(folder: Path, result: Result) -> None:
    """Adds a cell.

    Raises:
        RuntimeError: it cannot be written; those before are kept.
    """
    try:
        append_line(folder / FILE, asdict(result))
    except OSError as error:
        raise RuntimeError(
            f"{folder / FILE} cannot be written: {error}. The results before are kept; make room "
            "and run the same command again."
        ) from error


def facts(environment: dict[str, str]) -> str:
    """What a result was computed on, in words."""
    return "; ".join(f"{name} {value}" for name, value in environment.items())


def environment(recipe: Recipe, processes: Processes) -> dict[str, str]:
    """What a result was computed on."""
    info = crrelu_ext.build_info()
    device = processes.device
    name = f"{os.cpu_count()} cores" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return {
        "device": f"{device.type}, {name}",
        "processes": str(processes.world),
        "threads": str(torch.get_num_threads()),
        "precision": str(precision(recipe, device) or torch.float32).removeprefix("torch."),
        "crrelu_ext": f"{info['version']}, {info['isa'] if info['native'] else 'not native'}",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
