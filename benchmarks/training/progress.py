"""What can be seen while it trains: a line in the terminal, and TensorBoard logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .loop import Epoch
from .recipe import Recipe

REFRESH_EVERY = 10
"""Steps between two drawings: a thread that draws would take its share of a core."""
QUANTITIES = ("entropy", "location", "scale", "step_size")
"""Of an update of dynamic EAFO."""


class Terminal:
    """One cell: how far it is, the loss, the last metrics, the speed, the time left."""

    def __init__(
        self, recipe: Recipe, number: int, of: int, folder: Path, console: Console
    ) -> None:
        name = f"{recipe.model} {recipe.dataset} {recipe.activation} seed {recipe.seed}"
        self._epochs, self._metrics, self._console = recipe.epochs, "", console
        self._name = f"[{number}/{of}] {name}"
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task(self._name, total=None, figures="")
        self._progress.start()
        self._log = _tensorboard(folder / "logs" / recipe.cell) if recipe.tensorboard else None
        self._steps = 0

    def step(self, epoch: int, step: int, steps: int, loss: float, rate: float) -> None:
        self._steps = done = epoch * steps + step
        if done % REFRESH_EVERY == 0 or step == steps:
            figures = f"loss {loss:.3f}{self._metrics} {rate:,.0f}/s"
            total = self._epochs * steps
            self._progress.update(
                self._bar, completed=done, total=total, figures=figures, refresh=True
            )
            self._scalars({"train/loss": loss, "train/rate": rate})

    def epoch(self, number: int, epoch: Epoch, learning_rate: float) -> None:
        self._metrics = "".join(f", {name} {value:.4f}" for name, value in epoch.metrics.items())
        self._scalars({f"validation/{name}": value for name, value in epoch.metrics.items()})
        self._scalars({"train/learning rate": learning_rate})
        for layer, values in epoch.epsilons.items():
            self._scalars({f"epsilon/{layer}": sum(values) / len(values)})
        for layer, updates in epoch.updates.items():
            for update in updates:
                scalars = {f"eafo/{layer}/{name}": update[name] for name in QUANTITIES}
                self._scalars(scalars, update["step"])

    def close(self) -> None:
        self._progress.stop()
        self._console.print(f"{self._name}{self._metrics}", markup=False, highlight=False)
        if self._log is not None:
            self._log.close()

    def _scalars(self, values: dict[str, float | None], step: int | None = None) -> None:
        if self._log is None:
            return
        for name, value in values.items():
            if value is not None:  # an entropy that was not measured
                self._log.add_scalar(name, value, self._steps if step is None else step)


def _tensorboard(folder: Path) -> Any:
    """A writer of logs, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
