"""The state of a training run, written and read so that nothing in between can be seen."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from .files import write_atomically
from .processes import Processes


def save(
    file: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: dict[str, Any],
    processes: Processes,
) -> None:
    """Writes weights, optimizer, all chance, and ``position``: plain numbers, lists and tensors.

    Any number of processes can read it, sharded or not.

    Raises:
        RuntimeError: it cannot be written, say for want of room; the one before still is there.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=processes.world > 1)
    weights, moments = get_state_dict(model, optimizer, options=options)
    chance = processes.all(_chance(processes))
    if processes.first:
        content = {
            "model": weights,
            "optimizer": moments,
            "chance": chance,
            "position": position,
        }
        _write(file, content)


def load(
    file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, processes: Processes
) -> dict[str, Any]:
    """Puts everything back, and returns the position.

    Raises:
        RuntimeError: the file is no checkpoint, or another model's.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        options = StateDictOptions(full_state_dict=True)
        set_state_dict(
            model,
            optimizer,
            model_state_dict=content["model"],
            optim_state_dict=content["optimizer"],
            options=options,
        )
        if len(content["chance"]) == processes.world:  # else each goes on with fresh chance
            own = content["chance"][processes.rank]
            torch.set_rng_state(own["cpu"])
            if "cuda" in own and processes.device.type == "cuda":
                torch.cuda.set_rng_state(own["cuda"], processes.device)
    except (OSError, RuntimeError, LookupError, EOFError, ValueError, UnpicklingError) as error:
        why = "it is none" if isinstance(error, UnpicklingError) else error
        raise RuntimeError(
            f"The checkpoint {file} cannot be used: {why}. Remove it to train this cell anew."
        ) from error
    return content["position"]


def load_weights(file: str, model: nn.Module, said: str) -> None:
    """Reads what :func:`save_weights` wrote.

    Raises:
        ValueError: the file cannot be read, or is another model's; it begins with what the user
        ``said``.
    """
    try:
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # of a file that is something else torch.load may raise anything
        raise ValueError(f"{said}: {file}: {error!r}") from error


def save_weights(file: Path, model: nn.Module, processes: Processes) -> None:
    """Writes the model's weights alone, as ``load_state_dict`` takes them.

    Raises:
        RuntimeError: they cannot be written.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=processes.world > 1)
    weights = get_model_state_dict(model, options=options)
    if processes.first:
        _write(file, weights)


def _write(file: Path, content: dict[str, Any]) -> None:
    try:
        write_atomically(file, lambda stream: torch.save(content, stream))
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"{file} cannot be written: {error}. Finished results and the last checkpoint are "
            "kept; make room and run the same command again."
        ) from error


def _chance(processes: Processes) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if processes.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(processes.device)
    return states
