"""A study as a page of Markdown, with curves, beside what is published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from ..publish import publish
from . import plots, premise, published, results
from .dynamic import CONTROLS
from .premise import Layer
from .recipe import EAFO, KNOBS, Recipe
from .results import Result
from .summary import (
    ACCURACY,
    REFERENCE,
    Metric,
    Spread,
    Summary,
    difference,
    metrics,
    settings,
    speeds,
    summarize,
)

PAGE = "training.md"
NOTES = {
    "digits": "Scikit-learn's handwritten digits: 1347 to train on, 450 to test on.",
    "stdlib": "The source code of Python's standard library, byte by byte.",
    "stdlib-pairs": "Pairs **made** of the source code of Python's standard library, not judged by "
    "people: chosen is how a piece of it goes on, rejected a piece from elsewhere.",
}


def write(study: Path, out: Path) -> Path:
    """Writes the page and its pictures, all or nothing; the page's path.

    Raises:
        ValueError: the study has no results, or they cannot be read.
    """
    found = results.read(study)
    if not found:
        raise ValueError(f"STUDY is {str(study)!r}; allowed is the folder of a study with results")
    measured = premise.read(study)
    with publish(out) as scratch:
        (scratch / PAGE).write_text("\n".join(_page(found, measured)) + "\n")
        groups = settings(found)
        for group, name in zip(groups, pictures(groups), strict=True):
            plots.write(scratch, name, group)
            if layers := premise.of(group, measured):
                plots.premises(layers).savefig(scratch / f"{name}-premise.png", dpi=120)
    return out / PAGE


def pictures(groups: list[list[Result]]) -> list[str]:
    """How the names of each setting's pictures begin."""
    names: list[str] = []
    for group in groups:
        recipe = group[0].recipe
        name = f"{recipe.dataset}-{recipe.model}"
        name = "".join(c if c.isalnum() or c == "-" else "_" for c in name)
        same = sum(other == name or other.startswith(f"{name}--") for other in names)
        names.append(f"{name}--{same + 1}" if same else name)
    return names


def _page(found: list[Result], measured: list[Layer]) -> Iterator[str]:
    yield "# Training"
    yield ""
    yield "Everything but the activation is equal within a table; mean ± deviation over the seeds."
    yield f"*Difference* is to {REFERENCE.upper()}, seed by seed, and p that of a paired t test,"
    yield "not corrected for the number of activations: with few seeds a small p means little."
    yield ""
    groups = settings(found)
    for group, name in zip(groups, pictures(groups), strict=True):
        recipe = group[0].recipe
        yield f"## {recipe.model} on {recipe.dataset}"
        yield ""
        yield from section(group)
        if any(summary.runs for summary in summarize(group)):
            yield f"![Curves]({name}.png)"
            yield ""
        if any(summary.epsilons for summary in summarize(group)):
            yield f"![Epsilons]({name}-epsilon.png)"
            yield ""
        if any(summary.derived for summary in summarize(group)):
            yield f"![Entropies]({name}-entropy.png)"
            yield ""
        if layers := premise.of(group, measured):
            yield from _premise(layers)
            yield f"![Entropy, overlap, accuracy]({name}-premise.png)"
            yield ""


def section(group: list[Result]) -> Iterator[str]:
    """One setting: the table, what it was computed on, the epsilons."""
    judged_by, *others = metrics(group[0])
    summaries, recipe = summarize(group), group[0].recipe
    reference = next((one for one in summaries if one.activation == REFERENCE), None)
    beside = speeds(summaries, reference)
    unit = group[0].unit
    rows = [
        _row(summary, [judged_by, *others], recipe, beside[summary.activation])
        for summary in summaries
    ]
    logged = any(row[-1] for row in rows)
    columns = (
        *("activation", "seeds", judged_by.label, "best epoch", "difference", "p"),
        *(other.label for other in others),
        *(f"{unit}/s", "speed", "authors' logs, best epoch, one seed"),
    )
    if note := NOTES.get(recipe.dataset):
        yield note
        yield ""
    yield from table(columns if logged else columns[:-1],
                     rows if logged else [row[:-1] for row in rows])  # fmt: skip
    better = "higher" if judged_by.higher_is_better else "lower"
    yield f"{judged_by.label.split(',')[0].capitalize()}: {better} is better. *Speed* is that of"
    yield f"training beside {REFERENCE.upper()}'s, the median over the epochs."
    yield ""
    runs = {summary.activation: summary.runs for summary in summaries}
    against = {
        control: difference(runs[variant], runs[control], judged_by)
        for variant in runs
        if variant.partition(",")[0] == "dynamic-eafo"
        for name in CONTROLS
        if (control := variant.replace("dynamic-eafo", name)) in runs
    }
    if against:
        columns = ("dynamic-eafo less its control", "seeds", "difference", "p")
        yield from table(columns, [
            (name, str(one.seeds), one.spread.text(judged_by.digits, "+"), _p(one.p))
            for name, one in against.items() if one
        ])  # fmt: skip
    for result in group:
        if result.diverged:
            where = f"{result.recipe.variant}, seed {result.recipe.seed}"
            yield f"**Diverged: {where}.** {result.diverged}"
            yield ""
    epsilons = [
        (summary.activation, layer, spread.text(3, "+"))
        for summary in summaries
        for layer, spread in summary.epsilons.items()
    ]
    if epsilons:
        yield from table(("activation", "layer", "learned epsilon"), epsilons)
    derived = [
        (
            *(summary.activation, layer, layers.location.text(3, "+"), layers.scale.text(3)),
            *(layers.entropy.text(3, "+"), f"{layers.refusals} of {layers.updates}"),
        )
        for summary in summaries
        for layer, layers in summary.derived.items()
    ]
    if derived:
        columns = ("activation", "layer", "location of the input", "scale")
        yield from table((*columns, "entropy of the output, nats", "updates refused"), derived)
    own = next((one.recipe for one in group if one.recipe.dynamic), recipe)  # with all its knobs
    changed = {
        name: value
        for name, value in asdict(own).items()
        if name in ("model", "dataset") or value != default(name)
        if own.dynamic or name not in EAFO
    }
    shown = ", ".join(
        f"{name} {value}" for name, value in changed.items() if name not in ("activation", "seed")
    )
    yield f"Other than published: {shown}. {group[0].parameters:,} parameters."
    facts = {", ".join(result.environment.values()) for result in group}
    names = ", ".join(group[0].environment)
    yield f"Computed on ({names}): {'; '.join(sorted(facts))}."
    yield ""


def _premise(layers: list[Layer]) -> Iterator[str]:
    yield "### Entropy, overlap, accuracy"
    yield ""
    yield "Of each layer's outputs on the test images; docs/training.md defines them. Entropy is"
    yield "the mean over the units without an atom; none where most have one, as with ReLU."
    yield ""
    cells: dict[tuple[str, str], list[Layer]] = {}
    by_layer: dict[str, list[Layer]] = {}
    for one in layers:
        cells.setdefault((one.activation, one.layer), []).append(one)
        by_layer.setdefault(one.layer, []).append(one)
    rows = [
        (
            *(activation, layer),
            Spread.of([one.entropy for one in cell if one.entropy is not None]).text(3, "+"),
            f"{mean(one.atoms for one in cell):.0%}",
            Spread.of([one.overlap for one in cell]).text(3),
        )
        for (activation, layer), cell in cells.items()
    ]
    columns = ("activation", "layer", "entropy, nats", "units with an atom", "overlap of classes")
    yield from table(columns, rows)
    yield "Spearman's rank correlation, its p, and the number of models that have both figures. p"
    yield "takes the models for independent, which those with the same activation are not."
    yield ""
    correlations = [
        (layer, *(one.text if one else "" for one in premise.correlations(models)))
        for layer, models in by_layer.items()
    ]
    yield from table(("layer", *(f"{a} and {b}" for a, b in premise.PAIRS)), correlations)


def default(name: str) -> object:
    """A knob's published value."""
    return getattr(Recipe(), name) if name in KNOBS else None


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of Markdown and the empty line after it."""
    for cells in (columns, ["---"] * len(columns), *rows):
        yield f"| {' | '.join(cells)} |"
    yield ""


def _row(
    summary: Summary, measured: list[Metric], recipe: Recipe, speed: float | None
) -> tuple[str, ...]:
    judged_by, *others = measured
    digits, to_reference = judged_by.digits, summary.difference
    logged = published.accuracy(recipe.dataset, recipe.model, summary.activation)
    seeds = str(len(summary.runs)) + (f" + {summary.diverged} diverged" * bool(summary.diverged))
    return (
        summary.activation,
        seeds,
        summary.last.text(digits),
        summary.best.text(digits),
        to_reference.spread.text(digits, "+") if to_reference else "",
        _p(to_reference.p) if to_reference else "",
        *(x.text(metric.digits) for x, metric in zip(summary.others, others, strict=True)),
        "" if summary.rate is None else f"{summary.rate:,.0f}",
        "" if speed is None else f"{speed:.2f}",
        "" if logged is None or judged_by is not ACCURACY else f"{logged:.2f}",
    )


def _p(p: float | None) -> str:
    return "" if p is None else f"{p:.2g}"
