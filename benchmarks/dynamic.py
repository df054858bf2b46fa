"""What dynamic EAFO adds to a training step: ``python -m benchmarks.dynamic``.

The same model with an activation that follows its input, measuring in each step and moved every
hundredth, and with one that stays as it is: DynamicActivation and a table, DynamicCRReLU and
CRReLU. They take turns, a round of steps each, in one run.
"""

from collections.abc import Callable
from itertools import chain, cycle, islice, product
from statistics import median, quantiles
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from crrelu_ext import (
    ActivationScheduler,
    CRReLU,
    DerivedActivation,
    DynamicActivation,
    DynamicCRReLU,
)
from crrelu_ext.dynamic import smooth_relu

from .environment import describe
from .training.activations import Activation, place
from .training.build import build
from .training.processes import join
from .training.recipe import cells

ROUNDS = 30
STEPS = 10
EVERY = 100


def table() -> nn.Module:
    return DerivedActivation(smooth_relu, lower=-8, upper=8, knots=64)


FORMS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "table": (DynamicActivation, table),
    "parametric": (DynamicCRReLU, CRReLU),
}
"""What follows its input, and what stays."""


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


def compare(dataset: str, form: str) -> tuple[list[float], float, float]:
    """The ratios of the rounds; the seconds of a static step, and of an update."""
    dynamic, static = FORMS[form]
    _, fixed = training(dataset, static)
    model, step = training(dataset, dynamic)
    scheduler = ActivationScheduler(model, every=EVERY, warmup=8, total=10**9)

    def measured() -> None:
        step()
        scheduler.step()

    for _ in range(EVERY + 8):  # to the first update, which makes what later ones reuse
        measured()
        fixed()
    found, updates, steps = [], [], []
    for number in range(ROUNDS):
        seconds = {}
        for run in (measured, fixed)[:: 1 if number % 2 else -1]:
            start = perf_counter()
            for _ in range(STEPS):
                run()
            seconds[run] = perf_counter() - start
        scheduler.steps = EVERY * (number + 2) + 7  # the next step is an update's
        start = perf_counter()
        scheduler.step()
        updates.append(perf_counter() - start)
        steps.append(seconds[fixed] / STEPS)
        found.append((seconds[measured] + updates[-1] * STEPS / EVERY) / seconds[fixed])
        scheduler.steps = 9  # none during the rounds
    return found, median(steps), median(updates)


def main() -> None:
    console = Console()
    rows = Table("", "", "ratio", "quartiles", "static step, ms", "update, ms")
    for dataset, form in product(("digits", "stdlib"), FORMS):
        ratios, step, update = compare(dataset, form)
        low, middle, high = quantiles(ratios, n=4)
        milliseconds = f"{1e3 * step:.2f}", f"{1e3 * update:.2f}"
        rows.add_row(dataset, form, f"{middle:.4f}", f"{low:.4f} to {high:.4f}", *milliseconds)
    console.print(rows)
    for name, value in describe("python -m benchmarks.dynamic").items():
        console.print(f"{name}: {value}", highlight=False)


if __name__ == "__main__":
    main()
