"""A picture of what an ActivationScheduler did."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from crrelu_ext import reference
from crrelu_ext.dynamic import DynamicActivation, DynamicCRReLU
from crrelu_ext.scheduler import ActivationScheduler


def plot_history(scheduler: ActivationScheduler, path: str | Path) -> None:
    """Draws, for each layer over the steps: entropy, place of the input, C; and the functions now.

    Refused updates are marked on the axis of C. Of a :class:`crrelu_ext.DynamicCRReLU` with several
    channels the function is that of their mean numbers.

    Args:
        scheduler: with at least one update behind it.
        path: of the PNG, or of another format that matplotlib knows by its ending.

    Raises:
        ValueError: there was no update yet. ImportError: no matplotlib
        (the extra ``eafo`` brings it).
    """
    from matplotlib.figure import Figure

    if not any(scheduler.history.values()):
        first = scheduler.warmup + scheduler.every
        raise ValueError(f"scheduler has no history yet: its first update is at step {first}")
    figure = Figure(figsize=(12, 8), layout="constrained")
    (entropy, place), (size, function) = figure.subplots(2, 2)
    for number, (name, history) in enumerate(scheduler.history.items()):
        style = {"color": f"C{number % 10}", "label": name or "model"}
        steps = [update.step for update in history]
        entropy.plot(steps, [update.entropy for update in history], **style)
        locations, scales = ([getattr(u, n) for u in history] for n in ("location", "scale"))
        place.plot(steps, locations, **style)
        low, high = ([m + k * s for m, s in zip(locations, scales, strict=True)] for k in (-1, 1))
        place.fill_between(steps, low, high, color=style["color"], alpha=0.15)
        size.plot(steps, [update.step_size for update in history], **style)
        refused = [update.step for update in history if update.refusal]
        size.plot(refused, [0] * len(refused), "x", color=style["color"])
        ends = (locations[-1] - 4 * scales[-1], locations[-1] + 4 * scales[-1])
        x = torch.linspace(*ends, 400, dtype=torch.float64, device="cpu")
        function.plot(x, _function(scheduler.layers[name], x), **style)
    entropy.set(title="entropy of the output", xlabel="step", ylabel="H, nats")
    place.set(title="the input: location ± scale", xlabel="step", ylabel="x")
    size.set(title="C of the updates (x: refused)", xlabel="step", ylabel="C")
    function.set(title="the functions, ± 4 scales", xlabel="x", ylabel="f(x)")
    for axes in (entropy, place, size, function):
        axes.grid(alpha=0.3)
    entropy.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _function(layer: DynamicActivation | DynamicCRReLU, x: Tensor) -> Tensor:
    """The layer's f at points on the CPU, nothing being measured."""
    if isinstance(layer, DynamicActivation):
        return reference.tabulated(x, layer.table.cpu())
    numbers = layer.epsilon.detach().float()[None], layer.histogram.place
    epsilon, place = (rows.mean(1, keepdim=True).cpu() for rows in numbers)
    return reference.crrelu_at(x, epsilon[0], place)
