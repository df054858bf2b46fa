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
from crrelu_ext.eafo.improve import Improvement, improve
from crrelu_ext.elementwise import refuse_unless_elementwise

MOST_SAMPLES = 100_000
"""Of each layer; of more values so many are taken, evenly spaced."""


@dataclass(frozen=True)
class Layer:
    """An activation layer; None where something was refused, with the reason."""

    name: str
    activation: nn.Module
    density: SampleDensity | None
    """Of its input."""
    negentropy: float | None
    """How far the density is from normal: the normal entropy of that variance, less its own."""
    entropy: float | None
    """Of its output."""
    improvement: Improvement | None
    refusal: str | None


def from_model(model: nn.Module, batch: Any, *, steps: int = 1) -> list[Layer]:
    """Measures what each activation layer gets, and improves the activation under that density.

    An activation layer is a module without children, or one of this package's, that maps each
    element by itself, and not to itself. The model is run once, in evaluation mode and without
    gradients, and left as it was.

    Args:
        model: called as ``model(batch)``.
        batch: its input.
        steps: of :func:`crrelu_ext.eafo.improve`.

    Raises:
        ValueError: the model has no activation layer that the batch reaches.
    """
    inputs: dict[str, Tensor] = {}

    def recorder(name: str) -> Any:
        def record(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments and isinstance(arguments[0], Tensor) and len(arguments) == 1:
                values = arguments[0].detach().flatten()
                inputs[name] = values[:: max(1, -(-values.numel() // MOST_SAMPLES))].double().cpu()

        return record

    leaves = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, DynamicActivation | DynamicCRReLU) or not [*module.children()]
    }
    hooks = [module.register_forward_pre_hook(recorder(name)) for name, module in leaves.items()]
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
    for name, values in inputs.items():
        activation = copy.deepcopy(leaves[name]).eval().requires_grad_(False).double().cpu()
        if _is_activation(activation, values):
            layers.append(_layer(name, activation, values, steps))
    if not layers:
        raise ValueError("model has no activation layer that the batch reaches")
    return layers


def _is_activation(module: nn.Module, values: Tensor) -> bool:
    few = values[:1000]
    try:
        refuse_unless_elementwise(module, few)
    except (TypeError, ValueError, RuntimeError, IndexError):  # no function of any vector
        return False
    return not torch.equal(module(few), few)


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
    except ValueError as error:
        refusal = str(error)
    return Layer(name, activation, density, negentropy, entropy, improvement, refusal)
