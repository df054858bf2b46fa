"""What the training loop must know of a task, whatever is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .processes import Processes
from .recipe import Recipe

Batch = tuple[Tensor, ...]
Key = tuple[int, int]
"""The epoch and the index of a sample: all chance in a sample is a function of these and the seed,
so that it does not depend on which process prepares it, nor on what was prepared before."""


class DataError(RuntimeError):
    """A dataset is not there, or a file of it is broken; the message says which."""


class Source(Protocol):
    """Batches, of which this process gets its share."""

    @property
    def steps(self) -> int:
        """Steps in an epoch."""

    def batches(self, epoch: int, first_step: int = 0) -> Iterable[Batch]:
        """From a step of an epoch to its end, ``accumulation`` batches a step."""


class Samples(Protocol):
    """A dataset that can be asked for any of its samples."""

    def __len__(self) -> int: ...

    def __getitems__(self, keys: list[Key]) -> Batch:
        """The samples as one batch."""


@dataclass(frozen=True)
class Task:
    """A model, its data, and what is to become small.

    ``loss(model, batch)`` is the mean over the batch. ``measure(model, batch)`` gives sums over it,
    by name, and under "count" of how many; the metrics are their quotients.
    """

    model: nn.Module
    train: Source
    validation: Source
    loss: Callable[[nn.Module, Batch], Tensor]
    measure: Callable[[nn.Module, Batch], dict[str, Tensor]]
    unit: str
    units_per_sample: int = 1


class Indexed:
    """Samples in an order that the seed and the epoch decide; what is left over is left out."""

    def __init__(
        self,
        samples: Samples,
        processes: Processes,
        *,
        seed: int,
        batch_size: int,
        accumulation: int = 1,
        steps: int | None = None,
        workers: int = 0,
    ) -> None:
        parts = processes.world * accumulation
        if batch_size % parts:
            raise ValueError(
                f"batch_size is {batch_size}; allowed are multiples of {parts}, the processes "
                f"({processes.world}) times accumulation ({accumulation})"
            )
        if len(samples) < batch_size:
            raise ValueError(
                f"batch_size is {batch_size}; allowed are up to {len(samples)}, "
                "as many as there are samples"
            )
        self.steps = min(len(samples) // batch_size, steps or len(samples))
        self._count, self._seed, self._batch_size = len(samples), seed, batch_size
        self._rank, self._parts = processes.rank, parts
        self._accumulation = accumulation
        self._loader = _Loader(samples, processes.device, workers)

    def batches(self, epoch: int, first_step: int = 0) -> Iterable[Batch]:
        order = torch.randperm(self._count, generator=generator(self._seed, epoch))
        plan = []
        for step in range(first_step, self.steps):
            batch = order[step * self._batch_size :][: self._batch_size]
            parts = batch.chunk(self._parts)
            own = parts[self._rank * self._accumulation :][: self._accumulation]
            plan += [[(epoch, index) for index in part.tolist()] for part in own]
        return self._loader.load(plan)


class Everything:
    """Each sample once, in order, for validation."""

    def __init__(
        self, samples: Samples, processes: Processes, *, batch_size: int, workers: int = 0
    ) -> None:
        if len(samples) < processes.world:
            raise ValueError(
                f"The validation data are {len(samples)} samples; allowed are as many as there are "
                f"processes, {processes.world}, and more"
            )
        own = range(processes.rank, len(samples), processes.world)
        self._plan = [
            [(0, index) for index in own[start : start + batch_size]]
            for start in range(0, len(own), batch_size)
        ]
        self._loader = _Loader(samples, processes.device, workers)

    @property
    def steps(self) -> int:
        return len(self._plan)

    def batches(self, epoch: int, first_step: int = 0) -> Iterable[Batch]:
        return self._loader.load(self._plan[first_step:])


def indexed(
    train: Samples, validation: Samples, recipe: Recipe, processes: Processes
) -> tuple[Source, Source]:
    """Both sources of a dataset that can be asked for any of its samples."""
    return (
        Indexed(
            train,
            processes,
            seed=recipe.seed,
            batch_size=recipe.batch_size,
            accumulation=recipe.accumulation,
            steps=recipe.steps_per_epoch,
            workers=recipe.workers,
        ),
        Everything(
            validation,
            processes,
            batch_size=max(1, recipe.batch_size // (recipe.accumulation * processes.world)),
            workers=recipe.workers,
        ),
    )


class _Loader:
    """torch's DataLoader, whose workers live on from epoch to epoch."""

    def __init__(self, samples: Samples, device: torch.device, workers: int) -> None:
        self._plan: list[list[Key]] = []
        self._loader: DataLoader[Any] = DataLoader(
            samples,  # type: ignore[arg-type]
            batch_sampler=self,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # or it would draw from the one that the training uses
        )

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self._plan)

    def load(self, plan: list[list[Key]]) -> Iterable[Batch]:
        self._plan = plan
        return self._loader


def generator(seed: int, epoch: int, index: int = 0) -> torch.Generator:
    """Chance that is a function of the three alone."""
    return torch.Generator().manual_seed(mix(seed, epoch, index))


def mix(seed: int, epoch: int, index: int = 0) -> int:
    """One seed of three, with other bits for neighbours."""
    value = 0
    for part in (seed, epoch, index):
        value = (value ^ part) * 0x9E3779B97F4A7C15 % 2**64
        value ^= value >> 29
    return value % 2**63


def _as_it_is(batch: Any) -> Any:
    return batch
