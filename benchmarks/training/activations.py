"""The activations by name, and how one gets into a model."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from crrelu_ext import CRReLU, DynamicActivation, DynamicCRReLU, reference, replace_activation


class Channels(NamedTuple):
    """What an activation's input looks like where it sits in a model."""

    number: int
    dim: int


class ComposedCRReLU(CRReLU):
    """The same of PyTorch's own operators: what the native kernels are measured against."""

    def forward(self, input: Tensor) -> Tensor:
        return reference.crrelu(input, self.epsilon, channel_dim=self.channel_dim)


def _per_channel(channels: Channels, start: float) -> nn.Module:
    return CRReLU(channels.number, start, channel_dim=channels.dim)


@dataclass(frozen=True)
class Activation:
    """``make()`` makes a module; with a start it is ``make(start)``, per channel ``make(channels,
    start)``. What is dynamic has a scheduler beside the optimizer, which dynamic.py makes."""

    make: Callable[..., nn.Module]
    start: float | None = None
    per_channel: bool = False
    dynamic: bool = False

    def module(self, channels: Channels) -> nn.Module:
        """The module for one place in a model."""
        arguments: tuple[Any, ...] = () if self.start is None else (self.start,)
        return self.make(channels, *arguments) if self.per_channel else self.make(*arguments)


ACTIVATIONS = {
    "crrelu": Activation(lambda start: CRReLU(init=start), 0.01),
    "crrelu-channel": Activation(_per_channel, 0.01, per_channel=True),
    "crrelu-composed": Activation(lambda start: ComposedCRReLU(init=start), 0.01),
    "gelu": Activation(nn.GELU),
    "gelu-tanh": Activation(partial(nn.GELU, "tanh")),
    "relu": Activation(nn.ReLU),
    "prelu": Activation(lambda start: nn.PReLU(init=start), 0.25),
    "elu": Activation(lambda start: nn.ELU(start), 1.0),
    "silu": Activation(nn.SiLU),
    "mish": Activation(nn.Mish),
    "dynamic-crrelu": Activation(lambda start: DynamicCRReLU(init=start), 0.01, dynamic=True),
    "dynamic-eafo": Activation(DynamicActivation, dynamic=True),
    "dynamic-kept": Activation(DynamicActivation, dynamic=True),
    "dynamic-reversed": Activation(DynamicActivation, dynamic=True),
    "dynamic-random": Activation(DynamicActivation, dynamic=True),
}


def parse(text: str) -> Activation:
    """The activation that ``name`` or ``name:start`` means, such as ``crrelu:-0.3``.

    Raises:
        ValueError: there is none of that name, or it has no start, or that is no number.
    """
    name, colon, start = text.partition(":")
    if name not in ACTIVATIONS:
        raise ValueError(f"activation is {text!r}; allowed are {', '.join(ACTIVATIONS)}")
    activation = ACTIVATIONS[name]
    if not colon:
        return activation
    try:
        number = float(start)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"activation is {text!r}; after the colon comes a finite number")
    if activation.start is None:
        starting = [known for known, a in ACTIVATIONS.items() if a.start is not None]
        raise ValueError(f"activation is {text!r}; a start is allowed for {', '.join(starting)}")
    return replace(activation, start=number)


def place(model: nn.Module, activation: Activation, example: Tensor) -> None:
    """Puts the activation in the place of every one that the model has.

    ``example`` is an input of one sample, which tells what per-channel activations must know.

    Raises:
        ValueError: the model has no activation modules: it computes them as functions.
    """
    scalar = ACTIVATIONS["crrelu"] if activation.per_channel else activation
    changed = replace_activation(model, _known_types(), lambda: scalar.module(Channels(1, 1)))
    if not changed:
        raise ValueError(
            f"model is a {type(model).__name__}, which has no activation modules to replace; "
            "allowed is a model whose activations are modules such as torch.nn.GELU"
        )
    if activation.per_channel:
        found = _channels(model, set(changed.values()), example)
        made = {old: activation.module(channels) for old, channels in found.items()}
        for name, old in changed.items():
            model.set_submodule(name, made[old])


def learned(model: nn.Module) -> dict[str, list[float]]:
    """What the CRReLU layers have learned: their epsilons by the layers' names."""
    return {
        name: whole(module.epsilon).tolist()
        for name, module in model.named_modules()
        if isinstance(module, CRReLU)
    }


def whole(parameter: Tensor) -> Tensor:
    """A parameter's value on the CPU, gathered if it is spread over processes."""
    value = parameter.detach()
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).float().cpu()


def _known_types() -> tuple[type[nn.Module], ...]:
    """torch's activations that models are made with, and those of timm and transformers."""
    types: list[Any] = [
        *(nn.GELU, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SiLU, nn.Mish),
        nn.Hardswish,
    ]
    if layers := sys.modules.get("timm.layers"):
        types += [layers.GELU, layers.GELUTanh, layers.QuickGELU, layers.Swish, layers.Mish]
    if activations := sys.modules.get("transformers.activations"):
        names = ("GELUActivation", "NewGELUActivation", "FastGELUActivation", "QuickGELUActivation",
                 "AccurateGELUActivation", "GELUTanh", "PytorchGELUTanh", "SiLUActivation",
                 "MishActivation")  # fmt: skip
        # Not every version has all of them.
        types += [getattr(activations, name) for name in names if hasattr(activations, name)]
    return tuple(types)


def _channels(
    model: nn.Module, places: set[nn.Module], example: Tensor
) -> dict[nn.Module, Channels]:
    """The channels at each place: second in pictures unless a linear layer made them, else last."""
    made_by: dict[int, nn.Module] = {}
    alive: list[Tensor] = []  # or another tensor would come to the same address
    found: dict[nn.Module, Channels] = {}

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if module in places:
            maker = made_by.get(id(inputs[0]))
            second = isinstance(maker, nn.modules.conv._ConvNd | nn.modules.batchnorm._BatchNorm)
            picture = inputs[0].ndim == 4 and not isinstance(maker, nn.Linear)
            dim = 1 if second or picture else -1
            found[module] = Channels(inputs[0].shape[dim], dim)
        if isinstance(output, Tensor):
            alive.append(output)
            made_by.setdefault(id(output), module)

    # With gradients, since torch's fused inference layers would call no hooks.
    hooks = [module.register_forward_hook(after) for module in model.modules()]
    training = model.training
    try:
        model.eval()(example)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found
