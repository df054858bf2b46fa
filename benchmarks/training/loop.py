"""The one training loop: AdamW, a warm-up, a cosine; for any task, on one process or many."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from crrelu_ext import parameter_groups

from . import checkpoint, dynamic
from .activations import learned
from .diagnosis import Diverged, first_bad_layer
from .processes import Processes
from .recipe import OWN_DATA, Recipe
from .task import Batch, Source, Task, mix

LOOK_EVERY = 20
"""Steps between looks at the loss on a GPU, which must wait for it; a CPU looks at each."""


@dataclass(frozen=True)
class Epoch:
    """How one epoch went."""

    loss: float  # mean over the training batches
    metrics: dict[str, float]  # on the validation data, after the epoch
    rate: float  # images or tokens per second, training alone
    epsilons: dict[str, list[float]]  # by CRReLU layer, after the epoch
    updates: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Of dynamic EAFO, by layer: the fields of each crrelu_ext.updates.Update in the epoch."""


class Watch(Protocol):
    """Who wants to see how it goes."""

    def step(self, epoch: int, step: int, steps: int, loss: float, rate: float) -> None:
        """After a step, or several."""

    def epoch(self, number: int, epoch: Epoch, learning_rate: float) -> None:
        """After an epoch and its validation."""

    def close(self) -> None:
        """At the end, however it comes."""


class Nobody:
    """Watches nothing."""

    def step(self, epoch: int, step: int, steps: int, loss: float, rate: float) -> None: ...

    def epoch(self, number: int, epoch: Epoch, learning_rate: float) -> None: ...

    def close(self) -> None: ...


def train(
    task: Task,
    recipe: Recipe,
    processes: Processes,
    *,
    resume: Path | None = None,
    watch: Watch | None = None,
) -> Iterator[Epoch]:
    """Trains the task's model, epoch by epoch.

    With a file to ``resume`` from, which need not exist, the run can be killed at any moment: the
    next one with the same file first yields the epochs that are done, then goes on where the last
    checkpoint was. On one process of a CPU the results have the same bits as without a break.

    Raises:
        Diverged: a loss is not finite, in training or on the validation data.
        RuntimeError: a checkpoint cannot be written or read.
    """
    run = _Run(task, recipe, processes, resume)
    yield from run.done
    while len(run.done) < recipe.epochs:
        yield run.epoch(watch or Nobody())


def learning_rate(recipe: Recipe, progress: float) -> float:
    """After that many epochs, of which a part may be done: a line up, then half a cosine down."""
    top, warmup = recipe.learning_rate, recipe.warmup_epochs
    if progress < warmup:
        return recipe.warmup_rate + (top - recipe.warmup_rate) * progress / warmup
    share = (progress - warmup) / (recipe.epochs - warmup)
    return recipe.final_rate + (top - recipe.final_rate) * (1 + math.cos(math.pi * share)) / 2


def precision(recipe: Recipe, device: torch.device) -> torch.dtype | None:
    """What the model computes in beside float32."""
    amp = recipe.amp
    if amp == "auto":
        amp = "bfloat16" if device.type == "cuda" else "none"
    return None if amp == "none" else getattr(torch, amp)


def check_metrics(metrics: dict[str, float], epoch: int) -> None:
    """Of the validation data: the last step may break a model whose losses were finite.

    Raises:
        Diverged: one is not finite.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise Diverged(f"The validation {name} is {value} after epoch {epoch + 1}.")


def check_data(recipe: Recipe, data_dir: str | None, where: str) -> None:
    """That what there is of a cell already was made of the same data.

    Raises:
        ValueError: it was made of those in another ``data_dir``.
    """
    if recipe.dataset in OWN_DATA and recipe.data_dir != data_dir:
        raise ValueError(
            f"data_dir is {recipe.data_dir!r}; allowed is {data_dir!r}, with which {where} was "
            "made, or another STUDY"
        )


class _Run:
    """A model, its optimizer, and how far they are."""

    def __init__(self, task: Task, recipe: Recipe, processes: Processes, file: Path | None) -> None:
        self.task, self.recipe, self.processes, self.file = task, recipe, processes, file
        self.model = processes.share(task.model.to(processes.device), recipe.parallel)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, recipe.weight_decay),
            lr=recipe.learning_rate,
            betas=(recipe.beta1, recipe.beta2),
            fused=True,
        )
        self.eafo = dynamic.scheduler(recipe, task.model, task.train.steps)
        dtype = precision(recipe, processes.device)
        self.autocast: Callable[[], AbstractContextManager[Any]] = partial(
            torch.autocast, processes.device.type, dtype, enabled=dtype is not None
        )
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=dtype == torch.float16)
        self.done: list[Epoch] = []
        # Of the steps of this epoch; in float64, so that to go on with their sums over processes
        # rounds to the same mean.
        self.losses: list[Tensor] = []
        self.seconds = 0.0  # that they took
        torch.manual_seed(mix(recipe.seed, processes.rank))
        if file is not None and processes.of_first(file.exists()):
            self._load(file)
        if recipe.compile:
            self.model.compile()

    def epoch(self, watch: Watch) -> Epoch:
        """From where it stands to the end of the epoch."""
        task, recipe, number = self.task, self.recipe, len(self.done)
        steps, first = task.train.steps, len(self.losses)
        self.model.train()
        batches = iter(task.train.batches(number, first))
        seen, start = first, perf_counter() - self.seconds
        for step in range(first, steps):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(recipe, number + step / steps)
            parts = list(islice(batches, recipe.accumulation))
            self.losses.append(self._step(parts).double())
            at_end = step + 1 == steps
            due = (number * steps + step + 1) % recipe.checkpoint_every == 0 and self.file
            if at_end or due or self._cheap_to_look or (step + 1) % LOOK_EVERY == 0:
                loss = self._check(number, seen, parts)
                seen = step + 1
                self.seconds = perf_counter() - start
                watch.step(number, seen, steps, loss, self._rate)
            if due:
                self._save()
        metrics = self._evaluate(task.validation, number)
        check_metrics(metrics, number)
        epoch = Epoch(
            loss=self.processes.sum(torch.stack(self.losses).mean()).float().item(),
            metrics=metrics,
            rate=self._rate,
            epsilons=learned(task.model),
            updates=dynamic.updates(self.eafo, number * steps) if self.eafo else {},
        )
        self.done.append(epoch)
        self.losses, self.seconds = [], 0.0
        watch.epoch(number, epoch, self.optimizer.param_groups[0]["lr"])
        return epoch

    @property
    def _rate(self) -> float:
        """Images or tokens per second in this epoch."""
        samples = len(self.losses) * self.recipe.batch_size
        return samples * self.task.units_per_sample / self.seconds

    @property
    def _cheap_to_look(self) -> bool:
        return self.processes.device.type == "cpu" and self.processes.world == 1

    def _step(self, parts: list[Batch]) -> Tensor:
        """One optimizer step; this process's part of the mean loss."""
        total = torch.zeros((), device=self.processes.device)
        for number, part in enumerate(parts):
            batch = self._on_device(part)
            with self.processes.accumulate(self.model, number + 1 == len(parts)):
                with self.autocast():
                    loss = self.task.loss(self.model, batch) / len(parts)
                self.scaler.scale(loss).backward()
            total += loss.detach()
        total /= self.processes.world
        if self._cheap_to_look and not total.isfinite():
            return total  # the weights stay as they were, for the diagnosis
        self.scaler.unscale_(self.optimizer)
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.eafo:
            self.eafo.step()
        return total

    def _check(self, epoch: int, seen: int, parts: list[Batch]) -> float:
        """The last loss, if all since the last look are finite: the sum over the processes, so that
        all of them see the same."""
        losses = self.processes.sum(torch.stack(self.losses[seen:])).cpu()
        if losses.isfinite().all():
            return losses[-1].item()
        step = int((~losses.isfinite()).nonzero()[0]) + seen
        with self.autocast():
            layer = first_bad_layer(self.task, self.model, self._on_device(parts[0]))
        raise Diverged(
            f"The loss is {losses[step - seen].item()} at epoch {epoch + 1}, step {step + 1} of "
            f"{self.task.train.steps}, learning rate "
            f"{learning_rate(self.recipe, epoch + step / self.task.train.steps):.3g}. "
            f"The first layer with an output that is not finite: {layer}."
        )

    @torch.no_grad()
    def _evaluate(self, source: Source, epoch: int) -> dict[str, float]:
        self.model.eval()
        sums: dict[str, Tensor] = {}
        for part, own in self.processes.in_step(source.batches(epoch)):
            with self.autocast():
                measured = self.task.measure(self.model, self._on_device(part))
            for name, value in measured.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.double() * own
        whole = {name: self.processes.sum(value).item() for name, value in sums.items()}
        count = whole.pop("count")
        return {name: value / count for name, value in whole.items()}

    def _on_device(self, batch: Batch) -> Batch:
        return tuple(x.to(self.processes.device, non_blocking=True) for x in batch)

    def _save(self) -> None:
        assert self.file is not None
        position = {
            "epochs": [asdict(epoch) for epoch in self.done],
            "losses": self.processes.sum(torch.stack(self.losses)).cpu(),
            "seconds": self.seconds,
            "scaler": self.scaler.state_dict(),
            "eafo": dynamic.state(self.eafo, self.processes) if self.eafo else None,
            "data_dir": self.recipe.data_dir,
        }
        checkpoint.save(self.file, self.model, self.optimizer, position, self.processes)

    def _load(self, file: Path) -> None:
        position = checkpoint.load(file, self.model, self.optimizer, self.processes)
        # One written before this was noted down is taken as it is.
        check_data(self.recipe, position.get("data_dir", self.recipe.data_dir), str(file))
        self.done = [Epoch(**epoch) for epoch in position["epochs"]]
        losses = position["losses"].to(self.processes.device) / self.processes.world
        self.losses = list(losses.unbind())
        self.seconds = position["seconds"]
        self.scaler.load_state_dict(position["scaler"])
        if self.eafo:
            dynamic.load_state(self.eafo, position["eafo"], self.processes)
