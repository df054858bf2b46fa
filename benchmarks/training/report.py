"""A study as a page of Markdown, with curves, beside what is published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, compress, product
from pathlib import Path
from statistics import mean

from ..publish import publish
from . import plots, premise, published, results
from .dynamic import CONTROLS
from .premise import Layer
from .recipe import Recipe
from .results import Result
from .setting import description, headings
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
    yield "The cells of a table differ in activation and seed alone, unless a line below it says"
    yield "what else differs; mean ± deviation over the seeds. Cells ran one after another, so"
    yield "rates tell of the machine's other load too; `python -m benchmarks.training throughput`"
    yield "measures speed, with activations that take turns."
    yield ""
    groups = settings(found)
    for group, heading, name in zip(groups, headings(groups), pictures(groups), strict=True):
        yield f"## {heading}"
        yield ""
        yield from section(group, in_turns=False)
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


def section(group: list[Result], *, in_turns: bool = True) -> Iterator[str]:
    """One setting: the table, what it was computed on, the epsilons.

    Speeds are compared where the activations trained ``in_turns``, so that what else happened on
    the machine slowed all of them alike.
    """
    measured, recipe, summaries = metrics(group[0]), group[0].recipe, summarize(group)
    judged_by, *others = measured
    reference = next((one for one in summaries if one.activation == REFERENCE), None)
    beside = speeds(summaries, reference if in_turns else None)
    columns = (
        *("activation", "seeds", judged_by.label, "best epoch", "difference", "p"),
        *(other.label for other in others),
        *(f"{group[0].unit}/s", "speed", "authors' logs, best epoch, one seed"),
    )
    rows = [_row(summary, measured, recipe, beside[summary.activation]) for summary in summaries]
    if note := NOTES.get(recipe.dataset):
        yield note
        yield ""
    yield from table(columns, rows)
    controls = list(_controls(summaries, measured))
    compared = any(summary.difference for summary in summaries)
    better = "higher" if judged_by.higher_is_better else "lower"
    yield f"{judged_by.label.split(',')[0].capitalize()}: {better} is better."
    if compared:
        yield f"*Difference* is to {REFERENCE.upper()}, seed by seed."
    elif any(summary.activation != REFERENCE for summary in summaries):
        yield f"There is no {REFERENCE.upper()} with the same seeds here to compare with."
    if any(beside.values()):
        yield f"*Speed* is that of training beside {REFERENCE.upper()}'s, the median over the"
        yield "epochs."
    if compared or controls:
        yield "p is that of a paired t test, not corrected for the number of tests: with few seeds"
        yield "a small p means little. One pair has none, nor have differences that are all equal."
    yield ""
    if controls:
        labels = chain.from_iterable((metric.label, "p") for metric in measured)
        yield from table(("dynamic-eafo less its control", "pairs", *labels), controls)
    for result in group:
        if result.diverged:
            where = f"{result.recipe.variant}, seed {result.recipe.seed}"
            yield f"**Diverged: {where}.** {result.diverged}"
            yield ""
    yield from _learned(summaries)
    yield from description(group)


def _controls(summaries: list[Summary], measured: Sequence[Metric]) -> Iterator[tuple[str, ...]]:
    """Dynamic EAFO less each of its controls, in all that is measured."""
    runs = {summary.activation: summary.runs for summary in summaries}
    for variant, name in product(runs, CONTROLS):
        control = variant.replace("dynamic-eafo", name)
        if control == variant or control not in runs:
            continue
        found = [
            (one, metric.digits)
            for metric in measured
            if (one := difference(runs[variant], runs[control], metric))
        ]
        if found:
            figures = ((one.spread.text(digits, "+"), _p(one.p)) for one, digits in found)
            yield control, str(found[0][0].pairs), *chain.from_iterable(figures)


def _learned(summaries: list[Summary]) -> Iterator[str]:
    """What CRReLU's layers and those of dynamic EAFO have come to."""
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


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of Markdown, without columns in which no row has anything, and the empty line after
    it."""
    filled = [any(row[number] for row in rows) for number in range(len(columns))]
    for cells in (columns, ["---"] * len(columns), *rows):
        yield f"| {' | '.join(compress(cells, filled))} |"
    yield ""


def _row(
    summary: Summary, measured: Sequence[Metric], recipe: Recipe, speed: float | None
) -> tuple[str, ...]:
    judged_by, *others = measured
    digits = judged_by.digits
    logged = published.accuracy(recipe.dataset, recipe.model, summary.activation)
    seeds = str(len(summary.runs)) + (f" + {summary.diverged} diverged" * bool(summary.diverged))
    return (
        summary.activation,
        seeds,
        summary.last.text(digits),
        summary.best.text(digits),
        *_difference(summary, digits),
        *(x.text(metric.digits) for x, metric in zip(summary.others, others, strict=True)),
        "" if summary.rate is None else f"{summary.rate:,.0f}",
        "" if speed is None else f"{speed:.2f}",
        "" if logged is None or judged_by is not ACCURACY else f"{logged:.2f}",
    )


def _difference(summary: Summary, digits: int) -> tuple[str, str]:
    """To the reference, with the number of pairs where it is not that of the seeds; and p."""
    one = summary.difference
    if one is None:
        return "", ""
    pairs = f" ({one.pairs} pair{'s' * (one.pairs > 1)})" * (one.pairs != len(summary.runs))
    return one.spread.text(digits, "+") + pairs, _p(one.p)


def _p(p: float | None) -> str:
    return "" if p is None else f"{p:.2g}"
