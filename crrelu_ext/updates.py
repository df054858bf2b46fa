"""What an update does to dynamic layers of each kind: to tables, and to placed bumps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crrelu_ext.derived import monotone_slopes
from crrelu_ext.dynamic import ABOVE, DynamicActivation, DynamicCRReLU, local
from crrelu_ext.functional import crrelu_at
from crrelu_ext.placing import Places, sample
from crrelu_ext.reference import tabulated

if TYPE_CHECKING:
    from crrelu_ext.eafo.streaming import Streams  # needs scipy


@dataclass(frozen=True)
class Update:
    """What an update did to one layer; entropies in nats, of the output, under the histogram."""

    step: int
    """Of the scheduler, from 1."""
    entropy_before: float | None
    entropy: float | None
    """None where too little was measured, or it is infinite."""
    location: float
    scale: float
    """Of the input; the mean over channels that have their own."""
    epsilon: float | None
    """Of a :class:`DynamicCRReLU`, the mean over its channels; None for a table."""
    step_size: float
    """C in f + C D; 0 where the theory refused, and for a :class:`DynamicCRReLU`."""
    refusal: str | None
    not_finite: int
    """Elements counted so far that were NaN or infinite."""


class Tables:
    """The layers that are tables, and the engine's side of them."""

    def __init__(
        self, layers: dict[str, DynamicActivation], streams: Streams, step_size: float | None
    ) -> None:
        self.layers, self.streams, self.step_size = layers, streams, step_size
        self.measured, self.absorb = streams, streams.absorb

    def begin(self) -> None:
        """Takes over what trained layers have."""
        for i, layer in enumerate(self.layers.values()):
            place = local(layer.histogram.place).double().cpu()[:, 0]
            if place.tolist() != [0.0, 1.0]:
                table = local(layer.table).double().cpu()
                self.streams.take_over(i, place, partial(tabulated, table=table))

    def calibrate(self) -> None:
        self.streams.calibrate()
        self._hand_out()

    def update(self, step: int, trust: float) -> dict[str, Update]:
        """Moves the functions by at most trust, in scales; what that did, by layer."""
        outcome = self.streams.update(trust=trust, step_size=self.step_size)
        self._hand_out()
        return {
            name: Update(
                step=step,
                entropy_before=_known(outcome.entropy_before[i]),
                entropy=_known(outcome.entropy_after[i]),
                location=self.streams.location[i].item(),
                scale=self.streams.scale[i].item(),
                epsilon=None,
                step_size=outcome.step_size[i].item(),
                refusal=outcome.refusals[i],
                not_finite=int(self.streams.not_finite[i].item()),
            )
            for i, name in enumerate(self.layers)
        }

    def _hand_out(self) -> None:
        """Puts the functions into the layers' tables."""
        streams = self.streams
        places = torch.stack([streams.location, streams.scale], -1)
        tables: dict[int, Tensor] = {}
        for i, layer in enumerate(self.layers.values()):
            knots = layer.table.shape[1]
            if knots not in tables:
                tables[knots] = streams.tables(knots)
            table = tables[knots][i]
            table[2] = monotone_slopes(
                table[1], table[2], ((table[0, -1] - table[0, 0]) / (knots - 1)).item()
            )
            local(layer.table).copy_(table)
            local(layer.histogram.place).copy_(places[i][:, None])


class Placed:
    """The layers whose bump sits where the input is."""

    def __init__(self, layers: dict[str, DynamicCRReLU]) -> None:
        self.layers = layers
        self.channels = [layer.num_parameters for layer in layers.values()]
        self.measured = Places(sum(self.channels))

    def begin(self) -> None:
        """Takes over what trained layers have."""
        places = torch.cat([_place(layer) for layer in self.layers.values()], 1)
        self.measured.location, self.measured.scale = places.double()

    def absorb(self, counts: Tensor, keep: float) -> None:
        self.counts, self.keep = counts.double(), keep

    def calibrate(self) -> None:
        self.measured.follow(self.counts, 0.0)
        self._hand_out()

    def update(self, step: int, trust: float) -> dict[str, Update]:
        """Puts the bumps where the input is, however far that may be."""
        inputs = self._inputs()
        before = self._outputs(inputs)
        measured = self.measured.follow(self.counts, self.keep).split(self.channels)
        self._hand_out()
        entropies = _entropies(before + self._outputs(inputs))
        not_finite = self.measured.not_finite.split(self.channels)
        return {
            name: Update(
                step=step,
                entropy_before=entropies[i],
                entropy=entropies[len(self.layers) + i],
                location=_place(layer)[0].mean().item(),
                scale=_place(layer)[1].mean().item(),
                epsilon=_epsilons(layer).mean().item(),
                step_size=0.0,
                refusal=None if measured[i].any() else "too little of the input was measured",
                not_finite=int(not_finite[i].sum().item()),
            )
            for i, (name, layer) in enumerate(self.layers.items())
        }

    def _inputs(self) -> list[Tensor]:
        """A sample of each layer's input, (some of its channels, elements)."""
        by_layer = zip(self.counts.split(self.channels), self.layers.values(), strict=True)
        return [
            sample(counts[_some(layer), 1:ABOVE], _place(layer)[:, _some(layer)])
            for counts, layer in by_layer
        ]

    def _outputs(self, inputs: list[Tensor]) -> list[Tensor]:
        """What the layers make of these, as they are now."""
        outputs = []
        for x, layer in zip(inputs, self.layers.values(), strict=True):
            epsilon = _epsilons(layer)[_some(layer)]
            place = _place(layer)[:, _some(layer)]
            outputs.append(crrelu_at(x, epsilon, place, channel_dim=0))
        return outputs

    def _hand_out(self) -> None:
        places = torch.stack([self.measured.location, self.measured.scale]).split(self.channels, 1)
        for layer, place in zip(self.layers.values(), places, strict=True):
            local(layer.histogram.place).copy_(place)


def _known(entropy: Tensor) -> float | None:
    return None if entropy.isnan() else entropy.item()


def _place(layer: DynamicCRReLU) -> Tensor:
    """Locations and scales, on the CPU."""
    return local(layer.histogram.place).cpu()


def _epsilons(layer: DynamicCRReLU) -> Tensor:
    """All of them, on the CPU, also where they are spread over ranks, as by fully_shard."""
    epsilon: Any = layer.epsilon.detach()
    whole: Tensor = epsilon.full_tensor() if hasattr(epsilon, "full_tensor") else epsilon
    return whole.float().cpu()


def _entropies(samples: list[Tensor]) -> list[float | None]:
    """Of each tensor of samples, the mean over its rows; None if all have NaN, or it is infinite.

    It is where outputs coincide, as those of ReLU below 0.
    """
    import numpy as np
    from scipy.stats import differential_entropy

    known = [y[~y.isnan().any(-1)] for y in samples]
    if not any(map(len, known)):
        return [None] * len(samples)
    # At once: scipy's way to the computation takes longer than that.
    with np.errstate(divide="ignore"):
        of_rows = torch.from_numpy(differential_entropy(torch.cat(known), axis=-1))
    means = (part.mean() for part in of_rows.split([len(y) for y in known]))
    return [mean.item() if mean.isfinite() else None for mean in means]


def _some(layer: DynamicCRReLU) -> slice:
    """Up to 32 channels, which stand for all where all would take long."""
    return slice(None, None, -(-layer.num_parameters // 32))
