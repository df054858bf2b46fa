"""CRReLU in models that others wrote."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from torch import nn

from crrelu_ext.dynamic import DynamicActivation, Histogram
from crrelu_ext.modules import CRReLU


def replace_activation(
    model: nn.Module,
    old: type[nn.Module] | tuple[type[nn.Module], ...] = nn.GELU,
    new: Callable[[], nn.Module] = CRReLU,
) -> dict[str, nn.Module]:
    """Puts a new activation in the place of every module of type ``old``, below ``model``.

    One module used in several places stays one: its places share the new one's epsilon. The new
    ones go to the device of the parameters around them, in float32, and take the old ones' training
    mode. Call it before the optimizer is made, which must learn of the new parameters.

    Args:
        model: is changed.
        old: the type or types to be replaced, subclasses included. transformers and timm have
            GELU types of their own: ``transformers.activations.GELUActivation``,
            ``timm.layers.GELU``.
        new: makes a module; CRReLU itself, or say ``lambda: CRReLU(384, channel_dim=-1)``.

    Returns:
        The new modules by their names in the model; empty if there was nothing to replace.

    Raises:
        TypeError: an argument is of another type; ``new`` makes something else than a module.
        ValueError: the model itself is of type ``old``: nothing holds it that could be changed.
    """
    _check_model(model)
    types = old if isinstance(old, tuple) else (old,)
    if not types or not all(isinstance(t, type) and issubclass(t, nn.Module) for t in types):
        raise TypeError(f"old is {old!r}; allowed are types of torch.nn.Module, one or a tuple")
    if isinstance(model, types):
        raise ValueError(
            f"model itself has type {type(model).__name__}; replace it where it is held"
        )
    if isinstance(new, nn.Module) or not callable(new):
        given = type(new).__name__
        raise TypeError(f"new has type {given}; allowed is what makes a torch.nn.Module, as a type")

    places = [
        (name, parent, child_name, child)
        for name, parent, child_name, child in _children(model)
        if isinstance(child, types)
    ]
    made: dict[nn.Module, nn.Module] = {}
    for _, parent, _, child in places:  # all before the first change: if one fails, none is made
        if child not in made:
            made[child] = _like(child, parent, model, new())
    for _, parent, child_name, child in places:
        setattr(parent, child_name, made[child])
        if isinstance(parent, nn.TransformerEncoderLayer):
            parent.activation_relu_or_gelu = 0  # which says what a fused kernel may do in its place
    return {name: made[child] for name, _, _, child in places}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """A model's trainable parameters as an optimizer takes them, epsilons without weight decay.

    Decay would pull an epsilon to 0, where CRReLU is ReLU. All parameters of one dimension or none
    are left out of it: epsilons, and, as is usual, biases and norms.

    Args:
        model: whose parameters.
        weight_decay: of all other parameters.

    Returns:
        Two groups, ``{"params": ..., "weight_decay": ...}``; every parameter is in one of them.

    Raises:
        TypeError: ``model`` is no module. ValueError: ``weight_decay`` is negative or no number.
    """
    _check_model(model)
    if not isinstance(weight_decay, int | float) or not weight_decay >= 0:
        raise ValueError(f"weight_decay is {weight_decay!r}; allowed are 0 and more")
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (spared if parameter.dim() <= 1 else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]


def register() -> list[str]:
    """Makes "crrelu" the name of an activation in transformers and timm, as far as installed.

    Then ``GPT2Config(activation_function="crrelu")`` and
    ``timm.create_model("vit_tiny_patch16_224", act_layer="crrelu")`` make models with a learnable
    epsilon in each activation, and ``from_pretrained(..., activation_function="crrelu")`` gives
    those that the checkpoint lacks their start. Importing those packages takes seconds, so
    crrelu_ext does not do it by itself.

    Returns:
        The packages that know the name now: of the two, those that are installed. None is no error:
        a program that can do without them may call this all the same.

    Raises:
        ImportError: one of them is installed, but does not load.
    """
    found = [name for name in _REGISTRATIONS if importlib.util.find_spec(name)]
    for name in found:
        _REGISTRATIONS[name]()
    return found


def _register_with_transformers() -> None:
    from transformers import PreTrainedModel
    from transformers.activations import ACT2FN

    ACT2FN["crrelu"] = CRReLU
    initialize = PreTrainedModel._initialize_weights
    if hasattr(initialize, "sets_crrelu"):
        return

    # from_pretrained makes a model without values. Of those that the checkpoint lacks, each model
    # sets what it knows; to all others this is memory as it was found. What is in no state_dict
    # stays on the meta device.
    @functools.wraps(initialize)
    def initialize_weights(self: Any, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        if isinstance(module, Histogram):
            module.follow_place()
        if isinstance(module, CRReLU | DynamicActivation | Histogram) and not _is_loaded(module):
            module.reset_parameters()
        initialize(self, module, *args, **kwargs)

    initialize_weights.sets_crrelu = True  # type: ignore[attr-defined]
    PreTrainedModel._initialize_weights = initialize_weights  # type: ignore[method-assign]


def _is_loaded(module: nn.Module) -> bool:
    """Whether transformers marked the module, or as version 5.23 does each of its tensors."""
    own = chain(module.parameters(recurse=False), module.buffers(recurse=False))
    mark = "_is_hf_initialized"
    return getattr(module, mark, False) or all(getattr(tensor, mark, False) for tensor in own)


def _register_with_timm() -> None:
    from timm.layers import create_act

    for layers in (create_act._ACT_LAYER_DEFAULT, create_act._ACT_LAYER_ME):
        layers["crrelu"] = _timm_layer


def _timm_layer(inplace: bool = False, **options: Any) -> CRReLU:
    """CRReLU for timm's models, some of which ask every activation to work in place. That is only
    a wish: the backward pass needs the input, so it stays as it is."""
    return CRReLU(**options)


_REGISTRATIONS = {"transformers": _register_with_transformers, "timm": _register_with_timm}


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model has type {type(model).__name__}; allowed is a torch.nn.Module")


def _children(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """Every place of a module below another: its full name, its holder, its name there, itself."""
    for prefix, parent in model.named_modules():
        for name, child in parent._modules.items():  # named_children() leaves out repetitions
            if child is not None:
                yield f"{prefix}.{name}" if prefix else name, parent, name, child


def _like(old: nn.Module, parent: nn.Module, model: nn.Module, new: nn.Module) -> nn.Module:
    if not isinstance(new, nn.Module):
        raise TypeError(f"new's result has type {type(new).__name__}; allowed is a torch.nn.Module")
    neighbour = next((p for holder in (parent, model) for p in holder.parameters()), None)
    if neighbour is not None:
        new.to(neighbour.device)
    return new.train(old.training)
