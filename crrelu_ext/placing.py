"""Where the inputs of a network's parametric activations lie: the measuring of dynamic EAFO.

Everything is float64 on the CPU, of all channels of all layers at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crrelu_ext.dynamic import ABOVE, BELOW, BINS, BINS_PER_SCALE, NOT_FINITE, REACH

CENTERS = (torch.arange(BINS, dtype=torch.float64, device="cpu") + 0.5) / BINS_PER_SCALE - REACH
"""Of the bins, in scales from the location."""
SAMPLE = 512
"""Quantiles that stand for an input."""
FEWEST = 16
"""Elements that say something of a place."""
OUTSIDE = 0.01
"""The part of the input that may lie beyond the histogram."""
NARROWEST = 0.25 / BINS_PER_SCALE
"""In scales: a spread within one bin is taken to be this."""
SMALLEST, SMALLEST_PART = 2.0**-20, 2.0**-10
"""A scale is at least this, and this part of the location: an input that does not vary would have
it narrowed without end, until float32 could not tell the bins apart."""
LARGEST = 2.0**120
"""A scale is at most this: the knots of a table, REACH scales away, are finite in float32."""


class Measured:
    """What is known of each channel's input; all attributes that are tensors are the state.

    Args:
        channels: of all layers together.
    """

    def __init__(self, channels: int) -> None:
        self.location = torch.zeros(channels, dtype=torch.float64, device="cpu")
        self.scale = torch.ones(channels, dtype=torch.float64, device="cpu")
        self.not_finite = torch.zeros(channels, dtype=torch.float64, device="cpu")

    def state(self) -> dict[str, Tensor]:
        return {name: t.clone() for name, t in vars(self).items() if isinstance(t, Tensor)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        for name, saved in state.items():
            setattr(self, name, saved.to(getattr(self, name), copy=True))


class Places(Measured):
    """Location and scale of each channel's input, from its counts."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.weight = torch.zeros(channels, dtype=torch.float64, device="cpu")

    def follow(self, counts: Tensor, keep: float) -> Tensor:
        """Moves the places to where the input is.

        Mean and variance go to those of what was counted, joined to what is kept of the old ones.
        Bins that miss too much of the input are made eight times as wide, once for each call.

        Args:
            counts: (channels, bins + 3) float64, by bins around the present places.
            keep: the weight of one element counted before, beside one counted now.

        Returns:
            Of each channel, whether enough was counted for that.
        """
        masses = counts[:, 1:ABOVE]
        inside, outside = masses.sum(-1), counts[:, BELOW] + counts[:, ABOVE]
        self.not_finite = self.not_finite + counts[:, NOT_FINITE]
        enough = inside + outside >= FEWEST
        beyond = enough & (outside > OUTSIDE * (inside + outside))
        measured = enough & ~beyond
        mean, variance = moments(masses)
        weight = keep * self.weight
        part = (inside / (weight + inside).clamp(min=1)).where(measured, 0.0)
        joined = (1 - part) + part * variance + part * (1 - part) * mean**2
        self.location = self.location + self.scale * part * mean
        factor = joined.sqrt().clamp(min=NARROWEST).where(~beyond, 8.0)
        self.scale = bounded(self.location, self.scale * factor)
        self.weight = (weight + inside).where(~beyond, 0.0)
        return measured


def bounded(location: Tensor, scale: Tensor) -> Tensor:
    """The scales, no smaller than bins around these locations may be, and at most LARGEST."""
    return scale.clamp(SMALLEST, LARGEST).maximum(SMALLEST_PART * location.abs())


def moments(masses: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of histograms, (n, bins), in scales from the location; 0 of empty ones."""
    total = masses.sum(-1, keepdim=True).clamp(min=1)
    mean = (masses * CENTERS).sum(-1, keepdim=True) / total
    variance = (masses * (CENTERS - mean) ** 2).sum(-1, keepdim=True) / total
    return mean[:, 0], variance[:, 0]


def sample(masses: Tensor, place: Tensor) -> Tensor:
    """The quantiles of histograms around places, as a sample of the input.

    Args:
        masses: (channels, bins).
        place: (2, channels), location and scale.

    Returns:
        (channels, 512); NaN of a channel with too few elements.
    """
    total = masses.sum(-1, keepdim=True)
    levels = (torch.arange(SAMPLE, dtype=torch.float64, device="cpu") + 0.5) / SAMPLE * total
    cumulative = masses.cumsum(-1)
    bin = torch.searchsorted(cumulative, levels).clamp(max=BINS - 1)
    inside = masses.gather(-1, bin)
    position = bin + 1 - (cumulative.gather(-1, bin) - levels) / inside
    location, scale = place.double()[:, :, None]
    x = location + scale * (position / BINS_PER_SCALE - REACH)
    return x.where(total >= FEWEST, torch.nan)
