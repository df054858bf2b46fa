"""A study as a page of Markdown, with curves, beside what is published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from ..publish import publish
from . import plots, published, results
from .recipe import KNOBS, Recipe
from .results import Result
from .summary import ACCURACY, REFERENCE, Metric, Summary, metrics, settings, speeds, summarize

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
    with publish(out) as scratch:
        (scratch / PAGE).write_text("\n".join(_page(found)) + "\n")
        groups = settings(found)
        for group, name in zip(groups, pictures(groups), strict=True):
            plots.write(scratch, name, group)
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


def _page(found: list[Result]) -> Iterator[str]:
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
        yield f"![Curves]({name}.png)"
        yield ""
        if any(summary.epsilons for summary in summarize(group)):
            yield f"![Epsilons]({name}-epsilon.png)"
            yield ""
        if any(summary.derived for summary in summarize(group)):
            yield f"![Entropies]({name}-entropy.png)"
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
    for result in group:
        if result.diverged:
            where = f"{result.recipe.activation}, seed {result.recipe.seed}"
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
    changed = {
        name: value
        for name, value in asdict(recipe).items()
        if name in ("model", "dataset") or value != default(name)
    }
    shown = ", ".join(
        f"{name} {value}" for name, value in changed.items() if name not in ("activation", "seed")
    )
    yield f"Other than published: {shown}. {group[0].parameters:,} parameters."
    facts = {", ".join(result.environment.values()) for result in group}
    names = ", ".join(group[0].environment)
    yield f"Computed on ({names}): {'; '.join(sorted(facts))}."
    yield ""


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
    digits, difference = judged_by.digits, summary.difference
    logged = published.accuracy(recipe.dataset, recipe.model, summary.activation)
    p = difference.p if difference else None
    seeds = str(len(summary.runs)) + (f" + {summary.diverged} diverged" * bool(summary.diverged))
    return (
        summary.activation,
        seeds,
        summary.last.text(digits),
        summary.best.text(digits),
        difference.spread.text(digits, "+") if difference else "",
        "" if p is None else f"{p:.2g}",
        *(x.text(metric.digits) for x, metric in zip(summary.others, others, strict=True)),
        "" if summary.rate is None else f"{summary.rate:,.0f}",
        "" if speed is None else f"{speed:.2f}",
        "" if logged is None or judged_by is not ACCURACY else f"{logged:.2f}",
    )
