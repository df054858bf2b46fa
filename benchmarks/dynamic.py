"""What dynamic EAFO adds to a training step: ``python -m benchmarks.dynamic``.

A model whose activations measure in each step and are moved every hundredth, and the same one while
they stay as they are and measure nothing; the two take turns, a round of steps each, in one run. It
is one model, since two of the same kind differ by up to 2 % for where their memory lies. On a
machine shared with others the ratio of two times is known to a percent at best, so what was added
is also timed by itself, where it happens.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, cycle, islice, product
from statistics import median, quantiles
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from crrelu_ext import ActivationScheduler, DynamicActivation, DynamicCRReLU
from crrelu_ext.dynamic import Histogram

from .environment import describe, need_native
from .training.activations import Activation, place
from .training.build import build
from .training.processes import join
from .training.recipe import cells

ROUNDS = 150
STEPS = 2
EVERY = 100
FORMS: dict[str, Callable[[], nn.Module]] = {
    "table": DynamicActivation,
    "parametric": DynamicCRReLU,
}


def training(dataset: str, make: Callable[[], nn.Module]) -> tuple[nn.Module, Callable[[], None]]:
    """A model, and what takes one training step."""
    (recipe,) = cells({"dataset": dataset, "activation": "gelu", "seed": 0})
    with join("cpu") as processes:
        task = build(recipe, processes)
    batches = cycle(islice(task.train.batches(0), 8))
    first = next(batches)
    place(task.model, Activation(make), first[0][:1])
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-3, fused=True)
    feed = chain([first], batches)

    def step() -> None:
        task.loss(task.model, next(feed)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return task.model.train(), step


@dataclass(frozen=True)
class Comparison:
    """Seconds of the rounds' steps, with the updates' share in what follows its input."""

    following: list[float]
    static: list[float]
    counting: float
    update: float

    @property
    def part(self) -> float:
        """Of a step, what counting and updates take by themselves."""
        return (self.counting + self.update / EVERY) / median(self.static)

    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.following, self.static, strict=True)]


class Stopwatch:
    """Adds up the seconds that histograms count for."""

    def __init__(self, histograms: list[Histogram]) -> None:
        self.seconds = 0.0
        for histogram in histograms:
            histogram.count = self._timed(histogram.count)  # type: ignore[assignment, method-assign]

    def _timed(self, count: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        def timed(input: Tensor) -> None:
            start = perf_counter()
            count(input)
            self.seconds += perf_counter() - start

        return timed


def compare(dataset: str, form: str) -> Comparison:
    model, step = training(dataset, FORMS[form])
    scheduler = ActivationScheduler(model, every=EVERY, warmup=8, total=10**9)
    histograms = [module for module in model.modules() if isinstance(module, Histogram)]

    counting = Stopwatch(histograms)

    def measured() -> None:
        step()
        scheduler.step()

    def fixed() -> None:
        step()

    for _ in range(EVERY + 8):  # to the first update, which makes what later ones reuse
        measured()
        fixed()
    seconds: dict[Callable[[], None], list[float]] = {measured: [], fixed: []}
    updates, counts = [], []
    for number in range(ROUNDS):
        for run in (measured, fixed)[:: 1 if number % 2 else -1]:
            for histogram in histograms:
                histogram.train(run is measured)
            counting.seconds = 0.0
            start = perf_counter()
            for _ in range(STEPS):
                run()
            seconds[run].append((perf_counter() - start) / STEPS)
            if run is measured:
                counts.append(counting.seconds / STEPS)
        scheduler.steps = EVERY * (number + 2) + 7  # the next step is an update's
        start = perf_counter()
        scheduler.step()
        updates.append(perf_counter() - start)
        scheduler.steps = 9  # none during the rounds
    update = median(updates)
    following = [s + update / EVERY for s in seconds[measured]]
    return Comparison(following, seconds[fixed], median(counts), update)


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.dynamic", description=__doc__).parse_args()
    need_native()
    console = Console()
    columns = "ratio", "quartiles", "step, ms", "counting, ms", "update, ms", "both, of a step"
    rows = Table("", "", *columns)
    for dataset, form in product(("digits", "stdlib"), FORMS):
        found = compare(dataset, form)
        low, middle, high = quantiles(found.ratios(), n=4)
        rows.add_row(
            dataset,
            form,
            f"{middle:.4f}",
            f"{low:.3f}-{high:.3f}",
            f"{1e3 * median(found.static):.1f}",
            f"{1e3 * found.counting:.3f}",
            f"{1e3 * found.update:.2f}",
            f"{found.part:.2%}",
        )
    console.print(rows)
    for name, value in describe("python -m benchmarks.dynamic").items():
        console.print(f"{name}: {value}", highlight=False)


if __name__ == "__main__":
    main()
