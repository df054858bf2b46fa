"""Tar shards of pictures, read in sequence by webdataset as large runs want it."""

from __future__ import annotations

import contextlib
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .files import write_atomically
from .processes import Processes
from .recipe import Recipe
from .task import Batch, DataError, mix

SHUFFLED = 1000
"""Pictures that each worker holds to draw the next one from."""


class Shards:
    """``train-*.tar`` or ``val-*.tar`` in a folder: for each sample a jpg and its class as cls.

    Each worker of each process reads shards of its own; their order and all chance are functions
    of the seed, the epoch, and how many workers there are. In training a worker that comes to its
    shards' end begins again, so that all processes take as many steps. How many samples and classes
    there are is counted once and kept beside the shards, in <split>.json.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        transform: Callable[[Any], Tensor],
        recipe: Recipe,
        processes: Processes,
    ) -> None:
        index = processes.of_first(_index(folder, split) if processes.first else None)
        self.classes: int = index["classes"]
        self._files = sorted(folder.glob(f"{split}-*.tar"))
        self._train = split == "train"
        self._transform, self._recipe, self._processes = transform, recipe, processes
        parts = processes.world * recipe.accumulation
        if recipe.batch_size % parts:
            raise ValueError(
                f"batch_size is {recipe.batch_size}; allowed are multiples of {parts}, the "
                f"processes ({processes.world}) times accumulation ({recipe.accumulation})"
            )
        self._size = recipe.batch_size // parts
        readers = processes.world * max(1, recipe.workers)
        if len(self._files) < (readers if self._train else processes.world):
            raise ValueError(
                f"workers is {recipe.workers}, so that {readers} read in {processes.world} "
                f"processes; allowed are as many as there are {split} shards, {len(self._files)}"
            )
        if self._train and index["samples"] < recipe.batch_size:
            raise ValueError(
                f"batch_size is {recipe.batch_size}; allowed are up to {index['samples']}, "
                "as many as there are samples"
            )
        steps = index["samples"] // recipe.batch_size
        self.steps = min(max(1, steps), recipe.steps_per_epoch or steps)

    def batches(self, epoch: int, first_step: int = 0) -> Iterable[Batch]:
        accumulation = self._recipe.accumulation
        first = first_step * accumulation
        stream = _Stream(
            self._files,
            self._transform,
            size=self._size,
            seed=self._recipe.seed,
            epoch=epoch,
            skip=first,
            endless=self._train,
            rank=self._processes.rank,
            world=self._processes.world,
        )
        loader: DataLoader[Any] = DataLoader(
            stream,
            batch_size=None,
            num_workers=self._recipe.workers,
            pin_memory=self._processes.device.type == "cuda",
            generator=torch.Generator(),
        )
        return islice(loader, self.steps * accumulation - first) if self._train else loader


class _Stream(IterableDataset[Batch]):
    """The batches that one worker makes."""

    def __init__(
        self,
        files: list[Path],
        transform: Callable[[Any], Tensor],
        *,
        size: int,
        seed: int,
        epoch: int,
        skip: int,
        endless: bool,
        rank: int,
        world: int,
    ) -> None:
        self._files, self._transform, self._size = files, transform, size
        self._seed, self._epoch, self._skip, self._endless = seed, epoch, skip, endless
        self._rank, self._world = rank, world

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # The loader asks worker 0 first; the batches go on with the one whose turn it was.
        turn = (worker + self._skip) % workers
        reader, readers = self._rank * workers + turn, self._world * workers
        done = len(range(turn, self._skip, workers)) * self._size
        samples = islice(enumerate(self._samples(reader, readers)), done, None)
        while part := list(islice(samples, self._size)):
            if self._endless and len(part) < self._size:
                return
            pictures, labels = [], []
            for number, sample in part:
                with torch.random.fork_rng(devices=[]):
                    seed = mix(self._seed, self._epoch, number * readers + reader)
                    torch.default_generator.manual_seed(seed)
                    pictures.append(self._transform(_picture(sample)))
                labels.append(_label(sample))
            yield torch.stack(pictures), torch.tensor(labels)

    def _samples(self, reader: int, readers: int) -> Iterator[dict[str, Any]]:
        import webdataset

        chance = random.Random(mix(self._seed, self._epoch))
        files = [str(file) for file in self._files]
        if self._endless:
            chance.shuffle(files)
        own = files[reader::readers]
        while own:
            try:
                yield from webdataset.DataPipeline(
                    webdataset.SimpleShardList(own),
                    webdataset.tarfile_to_samples(),
                    *([webdataset.shuffle(SHUFFLED, rng=chance)] if self._endless else []),
                )
            except tarfile.TarError as error:
                raise DataError(f"one of {', '.join(own)} cannot be read: {error}") from error
            if not self._endless:
                return
            chance.shuffle(own)


def _picture(sample: dict[str, Any]) -> Any:
    from PIL import Image

    try:
        return Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
    except (OSError, SyntaxError, KeyError) as error:
        where = f"{sample['__key__']} in {sample['__url__']}"
        raise DataError(f"{where} cannot be read as a picture: {error}") from error


def _label(sample: dict[str, Any]) -> int:
    try:
        return int(sample["cls"])
    except (KeyError, ValueError) as error:
        where = f"{sample['__key__']} in {sample['__url__']}"
        raise DataError(f"{where} has no class: {error!r}") from error


def _index(folder: Path, split: str) -> dict[str, int]:
    """How many samples and classes the shards hold, counted if nobody has done so yet."""
    files = sorted(folder.glob(f"{split}-*.tar"))
    if not files:
        raise DataError(f"data_dir {str(folder)!r} holds no {split}-*.tar")
    names = [file.name for file in files]
    kept = folder / f"{split}.json"
    if kept.exists():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # of another program
            index = json.loads(kept.read_text())
            if index["files"] == names:
                return {name: int(index[name]) for name in ("samples", "classes")}
    labels = [label for file in files for label in _labels(file)]
    index = {"files": names, "samples": len(labels), "classes": max(labels, default=0) + 1}
    with contextlib.suppress(OSError):  # a folder only for reading is counted again next time
        write_atomically(kept, json.dumps(index).encode())
    return index


def _labels(file: Path) -> Iterator[int]:
    try:
        with tarfile.open(file) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.name.endswith(".cls") else None
                if content is not None:
                    yield int(content.read())
    except (OSError, tarfile.TarError, ValueError) as error:
        raise DataError(f"{file} cannot be read as a shard: {error}") from error
