"""Curves of training, of what the CRReLU layers learned, of what dynamic EAFO lowered."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .premise import PAIRS, Layer
from .results import Result
from .summary import Summary, between, history, metrics, summarize

# Okabe and Ito's colours, which stay apart for colour-blind readers; the lines differ as well.
COLORS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777", "#000000")
MARKERS = "osD^vP*X"
LABELS = {"entropy": "entropy, nats", "overlap": "overlap of the classes", "accuracy": "accuracy"}
LINES = ("--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
OURS = {"color": "#D55E00", "lw": 2.5, "ls": "-", "zorder": 5}


def write(folder: Path, name: str, group: list[Result]) -> None:
    """Writes name.png, name-epsilon.png where there are epsilons, and name-entropy.png where
    activations were derived."""
    summaries = [summary for summary in summarize(group) if summary.runs]
    if not summaries:
        return
    curves(group, summaries).savefig(folder / f"{name}.png", dpi=120)
    if any(summary.epsilons for summary in summaries):
        epsilons(summaries).savefig(folder / f"{name}-epsilon.png", dpi=120)
    if any(summary.derived for summary in summaries):
        entropies(summaries).savefig(folder / f"{name}-entropy.png", dpi=120)


def curves(group: list[Result], summaries: list[Summary]) -> Figure:
    """Training loss and the metric over the epochs: mean over the seeds, their range as a band."""
    judged_by, recipe = metrics(group[0])[0], group[0].recipe
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    loss, figures = figure.subplots(1, 2)
    others = 0
    for summary in summaries:
        style: dict[str, object] = {"lw": 1.8}
        if summary.activation == "crrelu":
            style |= OURS
        else:
            style |= {"color": COLORS[others % len(COLORS)], "ls": LINES[others % len(LINES)]}
            others += 1
        number = np.arange(1, recipe.epochs + 1)
        for axes, values in (
            (loss, [[epoch.loss for epoch in run.epochs] for run in summary.runs]),
            (figures, [judged_by.all(run) for run in summary.runs]),
        ):
            array = np.array(values)
            axes.plot(number, array.mean(0), label=summary.activation, **style)
            color = style["color"]
            axes.fill_between(number, array.min(0), array.max(0), color=color, alpha=0.12, lw=0)
    loss.set(ylabel="training loss, nats", yscale="log")
    figures.set(ylabel=judged_by.label)
    for axes in (loss, figures):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    seeds = between([len(summary.runs) for summary in summaries])
    what = "one seed" if seeds == "1" else f"mean and range of {seeds} seeds"
    figure.suptitle(f"{recipe.model} on {recipe.dataset}: {what}")
    handles, labels = loss.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6)
    return figure


def epsilons(summaries: list[Summary]) -> Figure:
    """Each layer's epsilon over the epochs, the mean over channels and seeds."""
    learning = {
        f"epsilon of {summary.activation}": {
            layer: [[np.mean(e.epsilons[layer]) for e in run.epochs] for run in summary.runs]
            for layer in summary.epsilons
        }
        for summary in summaries
        if summary.epsilons
    }
    return _by_layer(learning, "epoch")


def entropies(summaries: list[Summary]) -> Figure:
    """The entropy of each layer's output over the updates, the mean over the seeds."""
    derived = {
        f"entropy of {summary.activation}, nats": {
            layer: [
                _known(update["entropy"] for update in updates)
                for run in summary.runs
                if (updates := history(run).get(layer))
            ]
            for layer in summary.derived
        }
        for summary in summaries
        if summary.derived
    }
    return _by_layer(derived, "update")


def _known(values: Iterable[float | None]) -> list[float]:
    """NaN, which leaves a gap, for what was not measured."""
    return [math.nan if value is None else value for value in values]


def premises(layers: list[Layer]) -> Figure:
    """Each pair of entropy, overlap and accuracy: a point for each model's layer."""
    figure = Figure(figsize=(15, 5), layout="constrained")
    activations, names = (
        {getattr(one, n): None for one in layers} for n in ("activation", "layer")
    )
    colors = dict(zip(activations, cycle(COLORS), strict=False))
    markers = dict(zip(names, cycle(MARKERS), strict=False))
    for axes, (a, b) in zip(figure.subplots(1, len(PAIRS)), PAIRS, strict=True):
        for one in layers:
            x, y = getattr(one, a), getattr(one, b)
            if x is not None:
                axes.plot(x, y, markers[one.layer], color=colors[one.activation], alpha=0.6)
        axes.set(xlabel=LABELS[a], ylabel=LABELS[b])
        axes.grid(alpha=0.3)
    keys = [Line2D([], [], ls="", marker="o", color=c, label=a) for a, c in colors.items()]
    keys += [Line2D([], [], ls="", marker=m, color="black", label=x) for x, m in markers.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=6)
    return figure


def _by_layer(panels: dict[str, dict[str, list[list[Any]]]], over: str) -> Figure:
    """A panel for each of the labels: by layer, the mean of the runs' lists, as far as all of them
    go."""
    figure = Figure(figsize=(11, 4.2 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False)
    for axes, (label, layers) in zip(grid[:, 0], panels.items(), strict=True):
        shades = matplotlib.colormaps["cividis"](np.linspace(0, 0.9, len(layers)))
        for (layer, runs), shade in zip(layers.items(), shades, strict=True):
            mean = [np.mean(values) for values in zip(*runs, strict=False)]
            axes.plot(np.arange(1, len(mean) + 1), mean, color=shade, label=layer)
        axes.set(xlabel=over, ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="x-small")
    return figure
