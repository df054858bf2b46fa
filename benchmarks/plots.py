"""The figures as pictures."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

import crrelu_ext

from .activations import ACTIVATIONS, COMPILED, COPY
from .cases import FORWARD, FORWARD_BACKWARD, FORWARD_OUT, Case, format_numel
from .suites import Timing
from .training.plots import curves
from .training.results import Result
from .training.summary import summarize

# Okabe and Ito's colours, which stay apart for colour-blind readers; markers tell them apart too.
STYLES: dict[str, dict[str, Any]] = {
    "CRReLU": {"color": "#D55E00", "marker": "o", "lw": 2.5, "zorder": 5},
    "GELU erf": {"color": "#0072B2", "marker": "s"},
    "GELU tanh": {"color": "#56B4E9", "marker": "D"},
    "SiLU": {"color": "#009E73", "marker": "^"},
    "ReLU": {"color": "#CC79A7", "marker": "v"},
    "Mish": {"color": "#E69F00", "marker": "P"},
    "eager": {"color": "#777777", "marker": "x", "label": "formula, eager"},
    "compiled": {"color": "#777777", "marker": "+", "ls": "--", "label": "formula, compiled"},
    "copy": {"color": "black", "ls": ":", "lw": 2, "label": "copy_ (the limit)"},
}
OUT_STYLE = STYLES["CRReLU"] | {"ls": "--", "markerfacecolor": "white", "label": "CRReLU, out="}
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def write(folder: Path, timings: list[Timing], runs: list[Result]) -> None:
    """Writes speed-cpu.png (and speed-cuda.png), training.png and activation.png."""
    for device in dict.fromkeys(timing.case.device for timing in timings):
        speed(timings, device).savefig(folder / f"speed-{device}.png", dpi=150)
    summaries = summarize(runs)
    curves(runs, summaries).savefig(folder / "training.png", dpi=150)
    (ours,) = (summary for summary in summaries if summary.epsilons)
    epsilons = tuple(spread.mean for spread in ours.epsilons.values())
    learned_activation(epsilons).savefig(folder / "activation.png", dpi=150)


def speed(timings: list[Timing], device: str) -> Figure:
    """Bandwidth over size: one panel for each dtype and operation."""
    figure = Figure(figsize=(11, 9), layout="constrained")
    by_case = {timing.case: timing for timing in timings}
    sizes = sorted({case.numel for case in by_case if case.activation == COPY})

    def draw(axes: Axes, name: str, operation: str, dtype: str, style: dict[str, Any]) -> None:
        cases = [Case(operation, device, dtype, numel, name) for numel in sizes]
        found = [case for case in cases if case in by_case]
        style = {"label": name, "lw": 1.3, "markersize": 5, **style}
        numels = [case.numel for case in found]
        axes.plot(numels, [by_case[case].bandwidth / 1e9 for case in found], **style)

    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for row, dtype in zip(grid, ("float32", "bfloat16"), strict=True):
        for axes, operation in zip(row, (FORWARD, FORWARD_BACKWARD), strict=True):
            draw(axes, COPY, FORWARD_OUT, dtype, STYLES[COPY])
            for name in (*ACTIVATIONS, COMPILED):
                draw(axes, name, operation, dtype, STYLES[name])
            if operation == FORWARD:
                draw(axes, "CRReLU", FORWARD_OUT, dtype, OUT_STYLE)
            axes.set_title(f"{operation}, {dtype}")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(sizes, [format_numel(numel) for numel in sizes])
            axes.yaxis.set_major_formatter(PLAIN)
            axes.grid(alpha=0.3)
    for axes in grid[1]:
        axes.set_xlabel("elements")
    figure.supylabel("GB/s (bytes that must be moved, per second)")
    figure.suptitle(f"Speed over size on the {device.upper()}: higher is better")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def learned_activation(epsilons: tuple[float, ...]) -> Figure:
    """CRReLU and its derivative with the learned epsilon of each layer, beside the start.

    Below them what epsilon adds to ReLU, enlarged.
    """
    figure = Figure(figsize=(11, 8), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True)
    start = crrelu_ext.CRReLU().epsilon.item()
    # Lightness orders the layers, so that all eyes see the same order.
    shades = matplotlib.colormaps["cividis"](np.linspace(0, 0.9, len(epsilons)))
    curves: list[tuple[float, dict[str, Any]]] = [
        (epsilon, {"color": shade, "lw": 2, "label": f"layer {layer}: {epsilon:+.3f}"})
        for layer, (epsilon, shade) in enumerate(zip(epsilons, shades, strict=True), start=1)
    ]
    curves.append((start, {"color": "#D55E00", "ls": "--", "label": f"start: {start:+.3f}"}))
    for epsilon, style in curves:
        negative, positive = (_curve(epsilon, *side) for side in ((-3.5, -1e-9), (1e-9, 3.5)))
        gap = np.full((3, 1), np.nan)  # the derivative jumps at 0
        x, y, slope = np.concatenate([negative, gap, positive], axis=1)
        for column, values, relu in ((0, y, np.maximum(x, 0)), (1, slope, x > 0)):
            grid[0, column].plot(x, values, **style)
            grid[1, column].plot(x, values - relu, **style)
    for axes, label in zip(
        grid.flat,
        ("CRReLU(x)", "CRReLU'(x)", "CRReLU(x) - ReLU(x)", "CRReLU'(x) - ReLU'(x)"),
        strict=True,
    ):
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    for axes in grid[1]:
        axes.set_xlabel("x")
    figure.suptitle(
        "The learned activation of each layer and its derivative (epsilon: mean of the seeds)"
    )
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, title="epsilon", loc="outside lower center", ncols=5)
    return figure


def _curve(epsilon: float, lower: float, upper: float) -> np.ndarray:
    """x, the activation and its derivative in float64: (3, points)."""
    x = torch.linspace(lower, upper, 300, dtype=torch.float64, requires_grad=True)
    y = crrelu_ext.reference.crrelu(x, torch.tensor([epsilon], dtype=torch.float64))
    (slope,) = torch.autograd.grad(y.sum(), x)
    return torch.stack([x, y, slope]).detach().numpy()
