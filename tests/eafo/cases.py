"""Densities and activations that several tests use."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    MixtureSameFamily,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
)
from torch.distributions.transforms import AffineTransform

NORMAL = Normal(0.0, 1.0)


def logistic(scale: float = 1.0) -> Distribution:
    transforms = [SigmoidTransform().inv, AffineTransform(0.0, scale)]
    return TransformedDistribution(Uniform(0.0, 1.0), transforms)


def normals(*parts: tuple[float, float, float]) -> Distribution:
    """A mixture of normal densities, each (weight, mean, standard deviation)."""
    weights, means, deviations = torch.tensor(parts, dtype=torch.float64).T
    return MixtureSameFamily(Categorical(weights), Normal(means, deviations))


def identity(x: Tensor) -> Tensor:
    return x


def sigmoid_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)
