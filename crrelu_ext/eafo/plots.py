"""What the engine found, as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crrelu_ext.eafo.densities import Density, DensityLike, as_density
from crrelu_ext.eafo.from_model import Layer
from crrelu_ext.eafo.improve import Improvement
from crrelu_ext.elementwise import Function, value_of

BEFORE: dict[str, Any] = {"color": "#0072B2", "ls": "--", "lw": 2, "label": "before"}
AFTER: dict[str, Any] = {"color": "#D55E00", "lw": 2, "label": "after"}
PLAIN: dict[str, Any] = {"color": "#009E73", "lw": 2}


def points(density: Density) -> torch.Tensor:
    """Where the density is not negligible, at most six scales from its middle."""
    low = max(density.lower, density.location - 6 * density.scale)
    high = min(density.upper, density.location + 6 * density.scale)
    return torch.linspace(low, high, 1201, dtype=torch.float64, device="cpu")


def _output_density(axes: Axes, f: Function, density: Density, style: dict[str, Any]) -> None:
    """The output's density by a histogram with the density's own weights; it ends with the points,
    and its area is their probability."""
    x = points(density)
    fine = torch.linspace(x[0].item(), x[-1].item(), 200_001, dtype=torch.float64, device="cpu")
    weights = density.log_prob(fine).exp() * (fine[1] - fine[0])
    masses, edges = np.histogram(value_of(f, fine), bins=150, weights=weights.numpy())
    heights = masses / np.diff(edges)
    axes.stairs(heights, edges, **style)


def improvement(before: Function, result: Improvement, given: DensityLike) -> Figure:
    """The activation before and after, what was added, the output's densities, the entropies."""
    density = as_density(given)
    figure = Figure(figsize=(11, 8), layout="constrained")
    (activation, added), (output, entropy) = figure.subplots(2, 2)
    x = points(density)
    old, new = value_of(before, x), value_of(result.activation, x)
    activation.plot(x, old, **BEFORE)
    activation.plot(x, new, **AFTER)
    activation.set(xlabel="x", ylabel="f(x)", title="activation")
    added.plot(x, new - old, **PLAIN)
    added.set(xlabel="x", ylabel="change of f(x)", title="correction, summed over the steps")
    _output_density(output, before, density, BEFORE)
    _output_density(output, result.activation, density, AFTER)
    output.set(xlabel="z", ylabel="q(z)", title="density of the output")
    entropies = [step.entropy_before for step in result.steps[:1]]
    entropies += [step.entropy_after for step in result.steps]
    entropy.plot(range(len(entropies)), entropies, marker="o", **PLAIN)
    entropy.set(xlabel="step", ylabel="H, nats", title="entropy", xticks=range(len(entropies)))
    for axes in (activation, added, output, entropy):
        axes.grid(alpha=0.3)
    for axes in (activation, output):
        axes.legend()
    return figure


def worst(f: Function, given: DensityLike) -> Figure:
    """The worst activation and the density that it belongs to."""
    density = as_density(given)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    input, activation = figure.subplots(1, 2)
    x = points(density)
    input.plot(x, density.log_prob(x).exp(), **PLAIN)
    input.set(xlabel="x", ylabel="p(x)", title="density of the input")
    activation.plot(x, value_of(f, x), **AFTER)
    activation.set(xlabel="x", ylabel="f(x)", title="worst activation: uniform output")
    for axes in (input, activation):
        axes.grid(alpha=0.3)
    return figure


def comparison(activations: Mapping[str, Function], given: DensityLike) -> Figure:
    """The activations, and the densities of their outputs."""
    density = as_density(given)
    figure = Figure(figsize=(11, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = points(density)
    for number, (name, f) in enumerate(activations.items()):
        style = {"color": f"C{number % 10}", "ls": ("-", "--")[number // 10 % 2], "label": name}
        left.plot(x, value_of(f, x), **style)
        _output_density(right, f, density, style)
    left.set(xlabel="x", ylabel="f(x)", title="activation")
    right.set(xlabel="z", ylabel="q(z)", title="density of the output", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=7)
    return figure


def layers(found: Sequence[Layer]) -> Figure:
    """A row for each layer: the density of its input, and its activation before and after."""
    figure = Figure(figsize=(11, 3 * len(found)), layout="constrained")
    rows = figure.subplots(len(found), 2, squeeze=False)
    for (left, right), layer in zip(rows, found, strict=True):
        if layer.density is None or layer.negentropy is None:
            left.set_title(f"{layer.name}: {layer.refusal}", loc="left", wrap=True)
            left.set_axis_off()
            right.set_axis_off()
            continue
        density = as_density(layer.density)
        x = points(density)
        left.plot(x, density.log_prob(x).exp(), **PLAIN)
        left.set(ylabel="p(x)", title=f"{layer.name}: negentropy {layer.negentropy:.3f} nats")
        right.plot(x, value_of(layer.activation, x), **BEFORE)
        right.set(ylabel="f(x)", title=type(layer.activation).__name__)
        if layer.improvement:
            right.plot(x, value_of(layer.improvement.activation, x), **AFTER)
        right.legend()
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.set_xlabel("x")
    return figure
