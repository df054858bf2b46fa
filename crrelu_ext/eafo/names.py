"""Densities and activations by name, as the command line takes them."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Categorical,
    Cauchy,
    Distribution,
    Gumbel,
    Laplace,
    MixtureSameFamily,
    Normal,
    SigmoidTransform,
    StudentT,
    TransformedDistribution,
    Uniform,
)
from torch.nn import functional as F

from crrelu_ext import reference
from crrelu_ext.eafo.activations import identity
from crrelu_ext.elementwise import Function


def crrelu(x: Tensor) -> Tensor:
    """CRReLU with the published start, epsilon = 0.01."""
    return reference.crrelu(x, x.new_tensor([0.01]))


def logistic(
    location: Tensor, scale: Tensor, validate_args: bool | None = None
) -> TransformedDistribution:
    """The logistic density, which torch.distributions does not have."""
    transforms = [SigmoidTransform().inv, AffineTransform(location, scale)]
    return TransformedDistribution(Uniform(0.0, 1.0), transforms, validate_args)


ACTIVATIONS: dict[str, Function] = {
    "asinh": torch.asinh,
    "atan": torch.atan,
    "crrelu": crrelu,
    "elu": F.elu,
    "gelu": F.gelu,
    "identity": identity,
    "leaky_relu": F.leaky_relu,
    "mish": F.mish,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "tanh": torch.tanh,
}
DENSITIES: dict[str, Callable[..., Distribution]] = {
    "cauchy": Cauchy,
    "gumbel": Gumbel,
    "laplace": Laplace,
    "logistic": logistic,
    "normal": Normal,
    "studentt": StudentT,
    "uniform": Uniform,
}
_PART = re.compile(r"(?:(?P<weight>[^*+]+)\*)?(?P<name>[a-z]+)\((?P<numbers>[^()]*)\)")


def parse_activation(text: str) -> Function:
    """The activation of that name.

    Raises:
        ValueError: there is none.
    """
    if text not in ACTIVATIONS:
        raise ValueError(f"activation is {text!r}; allowed are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[text]


def parse_density(text: str) -> Distribution:
    """The density of a text such as ``normal(0,1)`` or ``0.3*normal(-2,0.5)+0.7*normal(1,1)``.

    The parameters are torch's; of a mixture all parts have the same name.

    Raises:
        ValueError: the text means no density.
    """
    parts = [_PART.fullmatch(part) for part in re.split(r"(?<=\))\+", text.replace(" ", ""))]
    matches = [part for part in parts if part]
    names = {match["name"] for match in matches}
    if len(matches) < len(parts) or len(names) != 1 or not names <= DENSITIES.keys():
        raise ValueError(
            f"density is {text!r}; allowed are such as 'normal(0,1)' and "
            f"'0.3*normal(-2,0.5)+0.7*normal(1,1)', of {', '.join(DENSITIES)}"
        )
    make = DENSITIES[names.pop()]
    try:
        numbers = [[float(number) for number in match["numbers"].split(",")] for match in matches]
        weights = torch.tensor(
            [float(match["weight"] or 1) for match in matches], device="cpu"
        ).double()
        columns = torch.tensor(numbers, dtype=torch.float64, device="cpu").T
        # torch.compile turns the checks of torch.distributions off, for the whole process.
        if len(matches) == 1:
            return make(*columns[:, 0], validate_args=True)
        components = make(*columns, validate_args=True)
        return MixtureSameFamily(Categorical(weights, validate_args=True), components)
    except (TypeError, ValueError) as error:
        raise ValueError(f"density is {text!r}, whose parameters do not fit: {error}") from None
