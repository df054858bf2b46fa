"""CRReLU and its rivals."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import crrelu_ext


@dataclass(frozen=True)
class Activation:
    """One competitor: ``function(input)``, or ``function(input, epsilon)`` if it takes one."""

    name: str
    function: Callable[..., Tensor]
    takes_epsilon: bool = False
    module: Callable[[], nn.Module] | None = None


def composed(input: Tensor, epsilon: Tensor) -> Tensor:
    """The formula as one writes it without this package."""
    return F.relu(input) + epsilon.to(input.dtype) * input * torch.exp(-0.5 * input.square())


def compiled_formula() -> Callable[..., Tensor]:
    """The composed formula under torch.compile, for the one shape it will be called with.

    A fresh compilation each time: a function that has seen another size would be compiled for
    sizes in general, which is not the best that Inductor can do.
    """
    torch.compiler.reset()
    return torch.compile(
        composed,
        dynamic=False,
        fullgraph=True,
        # A pool of compiler processes would live on beside the measurements.
        options={"compile_threads": 1},
    )


CRRELU = Activation("CRReLU", crrelu_ext.crrelu, takes_epsilon=True, module=crrelu_ext.CRReLU)
GELU = Activation("GELU erf", F.gelu, module=nn.GELU)
SILU = Activation("SiLU", F.silu, module=nn.SiLU)
EAGER = Activation("eager", composed, takes_epsilon=True)
ACTIVATIONS = {
    activation.name: activation
    for activation in (
        CRRELU,
        GELU,
        Activation(
            "GELU tanh",
            partial(F.gelu, approximate="tanh"),
            module=partial(nn.GELU, approximate="tanh"),
        ),
        SILU,
        Activation("ReLU", F.relu, module=nn.ReLU),
        Activation("Mish", F.mish, module=nn.Mish),
        EAGER,
    )
}


def derived(knots: int) -> Activation:
    """A table of so many knots; which function it holds makes no difference to its speed."""
    table = crrelu_ext.DerivedActivation(F.softplus, lower=-8, upper=8, knots=knots)
    return Activation(f"derived, {knots} knots", table)


def placed(input: Tensor, epsilon: Tensor) -> Tensor:
    """CRReLU with its bump somewhere; where makes no difference to its speed."""
    return crrelu_ext.crrelu_at(input, epsilon, _PLACE)


_PLACE = torch.tensor([[0.1], [0.9]])
PLACED = Activation("placed", placed, takes_epsilon=True)
COPY = "copy"
COMPILED = "compiled"


def activation(name: str) -> Activation:
    """The activation of that name; "compiled" is compiled anew."""
    if name == COMPILED:
        return Activation(COMPILED, compiled_formula(), takes_epsilon=True)
    return ACTIVATIONS[name]
