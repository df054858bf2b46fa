"""Results that belong together, over their seeds."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any

from scipy import stats

from .recipe import LANGUAGE, PREFERENCES
from .results import Result

REFERENCE = "gelu"


@dataclass(frozen=True)
class Metric:
    """What a kind of task is judged by."""

    name: str
    label: str
    scale: float
    higher_is_better: bool
    digits: int

    def all(self, run: Result) -> list[float]:
        """After each epoch."""
        return [self.scale * epoch.metrics[self.name] for epoch in run.epochs]

    def last(self, run: Result) -> float:
        return self.all(run)[-1]

    def best(self, run: Result) -> float:
        return max(self.all(run)) if self.higher_is_better else min(self.all(run))


ACCURACY = Metric("accuracy", "accuracy, %", 100, higher_is_better=True, digits=2)
LOSS = Metric("loss", "validation loss, nats", 1, higher_is_better=False, digits=4)
MARGIN = Metric("margin", "reward margin", 1, higher_is_better=True, digits=4)


def decimal(value: float, digits: int, sign: str = "") -> str:
    """Rounded; there is no -0.00."""
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # -0.0 + 0.0 is 0.0


def between(numbers: list[int]) -> str:
    """The number, or the smallest and the largest."""
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


@dataclass(frozen=True)
class Spread:
    """A mean and the deviation of the sample, which one value does not have; where one is not
    finite both are NaN, of none the mean alone."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        if not all(map(math.isfinite, values)):
            return cls(math.nan, math.nan)
        if not values:
            return cls(math.nan, None)
        return cls(mean(values), stdev(values) if len(values) > 1 else None)

    def text(self, digits: int, sign: str = "") -> str:
        if math.isnan(self.mean):
            return "" if self.deviation is None else "not finite"
        number = decimal(self.mean, digits, sign)
        return number if self.deviation is None else f"{number} ± {self.deviation:.{digits}f}"


@dataclass(frozen=True)
class Difference:
    """To the reference, paired over the seeds that both have."""

    spread: Spread
    pairs: int
    p: float | None  # of the paired t test, where there are two differences and more that differ


@dataclass(frozen=True)
class Derived:
    """Where a layer that is derived while it trains has come to, over the seeds."""

    location: Spread
    scale: Spread
    entropy: Spread  # of the output, nats, after the last update, where it was measured
    updates: int
    refusals: int

    @classmethod
    def of(cls, histories: list[list[dict[str, Any]]]) -> Derived:
        """Of a layer's updates, of the runs that have any."""
        last = [history[-1] for history in histories]
        location, scale, entropy = (
            Spread.of([update[name] for update in last if update[name] is not None])
            for name in ("location", "scale", "entropy")
        )
        refusals = [update["refusal"] is not None for history in histories for update in history]
        return cls(location, scale, entropy, len(refusals), sum(refusals))


@dataclass(frozen=True)
class Summary:
    """An activation over its seeds."""

    activation: str
    runs: list[Result]  # in the order of the seeds; without those that diverged
    diverged: int
    last: Spread
    best: Spread
    others: list[Spread]  # of the other metrics, after the last epoch
    difference: Difference | None
    rate: float | None  # median over all epochs
    epsilons: dict[str, Spread]  # by layer; over channels and seeds
    derived: dict[str, Derived]  # by layer, of dynamic EAFO


def metrics(result: Result) -> tuple[Metric, ...]:
    """What the result's task is judged by, and what else is measured."""
    if result.recipe.dataset in PREFERENCES:
        return MARGIN, ACCURACY, LOSS
    return (LOSS, ACCURACY) if result.recipe.dataset in LANGUAGE else (ACCURACY, LOSS)


def settings(results: list[Result]) -> list[list[Result]]:
    """The results that differ in activation, with its own knobs, and seed alone, in the order in
    which they began."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.recipe.setting, []).append(result)
    return list(groups.values())


def summarize(results: list[Result]) -> list[Summary]:
    """The activations of one setting; those that came first stay first."""
    runs: dict[str, dict[int, Result]] = {}
    diverged: Counter[str] = Counter()
    for result in results:
        by_seed = runs.setdefault(result.recipe.variant, {})
        if result.diverged is None:
            by_seed[result.recipe.seed] = result
        else:
            diverged[result.recipe.variant] += 1
    reference = list(runs.get(REFERENCE, {}).values())
    return [
        _summary(activation, by_seed, diverged[activation], reference, metrics(results[0]))
        for activation, by_seed in runs.items()
    ]


def speeds(summaries: list[Summary], beside: Summary | None) -> dict[str, float | None]:
    """How many times as fast each trains as another does in the same epoch of the same seed: the
    medians, by activation."""
    theirs = {run.recipe.seed: run.epochs for run in beside.runs} if beside else {}
    ratios = {
        summary.activation: [
            own.rate / other.rate
            for run in summary.runs
            for own, other in zip(run.epochs, theirs.get(run.recipe.seed, []), strict=False)
        ]
        for summary in summaries
    }
    return {name: median(values) if values else None for name, values in ratios.items()}


def history(run: Result) -> dict[str, list[dict[str, Any]]]:
    """All updates of dynamic EAFO, by layer, in order."""
    updates: dict[str, list[dict[str, Any]]] = {}
    for epoch in run.epochs:
        for layer, ones in epoch.updates.items():
            updates.setdefault(layer, []).extend(ones)
    return updates


def _summary(
    activation: str,
    by_seed: dict[int, Result],
    diverged: int,
    reference: list[Result],
    measured: tuple[Metric, ...],
) -> Summary:
    judged_by, *others = measured
    runs = [by_seed[seed] for seed in sorted(by_seed)]
    epsilons: dict[str, list[float]] = {}
    for run in runs:
        for layer, values in run.epochs[-1].epsilons.items():
            epsilons.setdefault(layer, []).extend(values)
    histories = [history(run) for run in runs]
    layers = dict.fromkeys(layer for one in histories for layer in one if one[layer])
    return Summary(
        activation,
        runs,
        diverged,
        last=Spread.of([judged_by.last(run) for run in runs]),
        best=Spread.of([judged_by.best(run) for run in runs]),
        others=[Spread.of([metric.last(run) for run in runs]) for metric in others],
        difference=difference(runs, reference, judged_by) if activation != REFERENCE else None,
        rate=median(epoch.rate for run in runs for epoch in run.epochs) if runs else None,
        epsilons={layer: Spread.of(values) for layer, values in epsilons.items()},
        derived={
            layer: Derived.of([one[layer] for one in histories if one.get(layer)])
            for layer in layers
        },
    )


def difference(runs: list[Result], reference: list[Result], judged_by: Metric) -> Difference | None:
    """Of the runs to those of another activation; None if they have no seed in common."""
    own, other = ({run.recipe.seed: judged_by.last(run) for run in of} for of in (runs, reference))
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        return None
    differences = [own[seed] - other[seed] for seed in seeds]
    spread = Spread.of(differences)
    # Where all differences are equal, but for rounding, the test would be sure of anything.
    differ = (spread.deviation or 0.0) > 1e-9 * abs(spread.mean)
    p = float(stats.ttest_1samp(differences, 0).pvalue) if differ else None
    return Difference(spread, len(seeds), p)
