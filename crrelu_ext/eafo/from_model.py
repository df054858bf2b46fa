"""The activation layers of a network under the densities that a batch of data gives them."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crrelu_ext.dynamic import DynamicActivation, DynamicCRReLU
from crrelu_ext.eafo.activations import identity
from crrelu_ext.eafo.densities import SampleDensity
from crrelu_ext.eafo.functionals import output_entropy
from crrelu_ext.eafo.improve import Improvement, improve, refuse_unless_steps
from crrelu_ext.elementwise import refuse_unless_elementwise, value_of

MOST_SAMPLES = 100_000
"""Of each call of a layer; of more values so many are taken."""


@dataclass(frozen=True)
class Layer:
    """An activation layer; None where something was refused, with the reason."""

    name: str
    activation: nn.Module
    """A copy, on the CPU."""
    density: SampleDensity | None
    """Of its input."""
    negentropy: float | None
    """How far the density is from normal: the normal entropy of that variance, less its own."""
    entropy: float | None
    """Of its output."""
    improvement: Improvement | None
    refusal: str | None


@torch.inference_mode(False)
def from_model(model: nn.Module, batch: Any, *, steps: int = 1) -> list[Layer]:
    """Measures what each activation layer gets, and improves the activation under that density.

    An activation layer is a module without children, or one of this package's, that maps each
    element by itself, and not to itself; one with parameters per channel does not, and is left out,
    as is a layer that cannot be copied. The model is run once, in evaluation mode and without
    gradients, and left as it was. Where it calls a layer several times, the density is that of all
    these inputs.

    Args:
        model: called as ``model(batch)``.
        batch: its input.
        steps: of :func:`crrelu_ext.eafo.improve`.

    Raises:
        ValueError: the model has no activation layer that the batch reaches; or as
            :func:`crrelu_ext.eafo.improve` of steps. TypeError: model is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model has type {type(model).__name__}; allowed is a torch.nn.Module")
    refuse_unless_steps(steps)
    inputs: dict[str, list[Tensor]] = {}

    def recorder(name: str) -> Any:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = [*args, *kwargs.values()]
            if len(given) == 1 and isinstance(given[0], Tensor) and given[0].is_floating_point():
                values = _some(given[0].detach().flatten())
                inputs.setdefault(name, []).append(values.to("cpu", torch.float64, copy=True))

        return record

    leaves = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, DynamicActivation | DynamicCRReLU) or not [*module.children()]
    }
    hooks = [
        module.register_forward_pre_hook(recorder(name), with_kwargs=True)
        for name, module in leaves.items()
    ]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    layers = []
    for name, calls in inputs.items():
        values = torch.cat(calls)
        activation = _activation_in(leaves[name], values)
        if activation:
            layers.append(_layer(name, activation, values, steps))
    if not layers:
        raise ValueError("model has no activation layer that the batch reaches")
    return layers


def _some(values: Tensor) -> Tensor:
    """Of more values than are taken one of each of so many stretches, at random, so that all
    channels have their share; at every call the same."""
    stretch = values.numel() / MOST_SAMPLES
    if stretch <= 1:
        return values
    at_random = torch.rand(
        MOST_SAMPLES, generator=torch.Generator("cpu"), dtype=torch.float64, device="cpu"
    )
    numbers = torch.arange(MOST_SAMPLES, device="cpu")
    return values[((numbers + at_random) * stretch).long().to(values.device)]


def _activation_in(layer: nn.Module, values: Tensor) -> nn.Module | None:
    """A copy of an activation layer; None of another one."""
    few = values[:1000]
    try:
        copied = copy.deepcopy(layer).eval().requires_grad_(False).cpu()
        refuse_unless_elementwise(copied, few)
        return None if torch.equal(value_of(copied, few), few) else copied
    except Exception:  # whatever another layer does with a vector
        return None


def _layer(name: str, activation: nn.Module, values: Tensor, steps: int) -> Layer:
    density, negentropy, entropy, improvement, refusal = None, None, None, None, None
    try:
        density = SampleDensity(values)
        mean = (density.masses * density.centers).sum()
        variance = (density.masses * (density.centers - mean) ** 2).sum() + density.bandwidth**2
        normal = 0.5 * math.log(2 * math.pi * math.e * variance.item())
        negentropy = normal - output_entropy(identity, density)
        entropy = output_entropy(activation, density)
        improvement = improve(activation, density, steps=steps)
    except (ValueError, RuntimeError) as error:  # such as that there is no second derivative
        refusal = str(error)
    return Layer(name, activation, density, negentropy, entropy, improvement, refusal)
