"""Dynamic EAFO: moves the functions of a network's dynamic activations while it trains."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, distributed, nn

from crrelu_ext._ops import native, problem
from crrelu_ext.derived import monotone_slopes
from crrelu_ext.dynamic import ABOVE, DynamicActivation, DynamicCRReLU
from crrelu_ext.functional import crrelu_at
from crrelu_ext.placing import Places, sample

if TYPE_CHECKING:
    from crrelu_ext.eafo.streaming import Streams  # needs scipy


class Writer(Protocol):
    """What torch.utils.tensorboard's SummaryWriter has."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...


@dataclass(frozen=True)
class Update:
    """What an update did to one layer; entropies in nats, of the output, under the histogram."""

    step: int
    """Of the scheduler, from 1."""
    entropy_before: float | None
    entropy: float | None
    """None where too little was measured."""
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


class ActivationScheduler:
    """Moves all dynamic activations of a model at intervals: tables by a small step of EAFO.

    ``step()`` stands beside the optimizer's. In the warm-up the histograms find, four times, where
    each layer's input lies. Then, every so many steps, each :class:`DynamicCRReLU` takes the
    location and scale of its input; and the f of each :class:`DynamicActivation` goes to f + C D,
    where D is the theory's correction for the density measured since, with exponential forgetting,
    projected on eight Hermite functions; or to the nearest function whose slope is nowhere less
    than a fifth of that at the start. C is at most ``step_size``, and such that f changes nowhere
    by more than ``trust`` times the input's scale; ``trust`` goes down to zero along a line over
    ``total`` steps. Where the theory refuses, or the measured entropy does not fall, the function
    stays, and the history says why. Under torch.distributed the counts are added up over all ranks,
    so that all derive the same functions.

    Args:
        model: holds the dynamic layers, at least one.
        every: steps from update to update.
        warmup: steps before the first interval; at least 4.
        total: steps after which nothing changes any more.
        step_size: the largest C; None for no bound of its own.
        trust: the largest |Δf| of the first update, in scales of the input.
        forgetting: the part of the old histogram that an update drops.
        writer: a SummaryWriter, for TensorBoard; None for none.

    Attributes:
        layers: the dynamic layers by their names.
        history: by layer name, its updates in order.

    Raises:
        ValueError: no such layers, or a number out of range. RuntimeError: no native kernels, which
        do the measuring. ImportError: no scipy, which the extra ``eafo`` brings.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 100,
        warmup: int = 100,
        total: int = 10_000,
        step_size: float | None = None,
        trust: float = 0.01,
        forgetting: float = 0.1,
        writer: Writer | None = None,
    ) -> None:
        if not native:
            raise RuntimeError(f"only the native kernels measure an activation's input. {problem}")
        for name, value, least in (("every", every, 1), ("warmup", warmup, 4), ("total", total, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; allowed are whole numbers from {least} on")
        positive = {"trust": trust} | ({} if step_size is None else {"step_size": step_size})
        for name, number in positive.items():
            if not _is_number(number) or not 0 < number < math.inf:
                raise ValueError(f"{name} is {number!r}; allowed are positive, finite numbers")
        if not _is_number(forgetting) or not 0 <= forgetting <= 1:
            raise ValueError(f"forgetting is {forgetting!r}; allowed are numbers from 0 to 1")
        self.layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, DynamicActivation | DynamicCRReLU)
        }
        if not self.layers:
            raise ValueError(
                "model has no DynamicActivation and no DynamicCRReLU; replace_activation puts them "
                "in"
            )
        self.every, self.warmup, self.total = every, warmup, total
        self.step_size, self.trust, self.forgetting = step_size, trust, forgetting
        self.writer = writer
        self.steps = 0
        self.history: dict[str, list[Update]] = {name: [] for name in self.layers}
        tables = {n: m for n, m in self.layers.items() if isinstance(m, DynamicActivation)}
        placed = {n: m for n, m in self.layers.items() if isinstance(m, DynamicCRReLU)}
        self._kinds: dict[str, Tables | Placed] = {}
        if tables:
            from crrelu_ext.eafo.streaming import Streams

            streams = Streams([layer.start for layer in tables.values()])
            self._kinds["tables"] = Tables(tables, streams)
        if placed:
            self._kinds["places"] = Placed(placed)

    def step(self) -> None:
        """After each of the optimizer's steps."""
        self.steps += 1
        trust = self.trust * (1 - self.steps / self.total)
        if self.steps <= self.warmup:
            if self.steps in (self.warmup * part // 8 for part in (1, 2, 4, 8)):
                self._collect()
                for kind in self._kinds.values():
                    kind.calibrate()
        elif (self.steps - self.warmup) % self.every == 0 and trust > 0:
            self._collect()
            for kind in self._kinds.values():
                self._record(kind.update(self, trust))

    def _collect(self) -> None:
        """The counts of all layers, over all ranks, to where they are used; empties the layers."""
        counts = torch.cat([layer.histogram.counts for layer in self.layers.values()])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(counts)
        channels = [len(layer.histogram.counts) for layer in self.layers.values()]
        by_layer = dict(zip(self.layers, counts.cpu().split(channels), strict=True))
        for layer in self.layers.values():
            layer.histogram.counts.zero_()
        for kind in self._kinds.values():
            kind.absorb(torch.cat([by_layer[name] for name in kind.layers]), 1 - self.forgetting)

    def _record(self, updates: dict[str, Update]) -> None:
        for name, update in updates.items():
            self.history[name].append(update)
            if self.writer:
                quantities = ("entropy", "location", "scale", "epsilon", "step_size", "not_finite")
                for quantity in quantities:
                    value = getattr(update, quantity)
                    if value is not None:
                        tag = f"activation/{name}/{quantity}"
                        self.writer.add_scalar(tag, value, self.steps)

    @property
    def refusals(self) -> dict[str, int]:
        """How often each layer kept its function because the theory refused."""
        return {
            name: sum(update.refusal is not None for update in history)
            for name, history in self.history.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs beside the model's own state, as plain values."""
        return {
            "steps": self.steps,
            **{name: kind.state() for name, kind in self._kinds.items()},
            "kinds": {name: type(layer).__name__ for name, layer in self.layers.items()},
            "counts": {name: layer.histogram.counts.clone() for name, layer in self.layers.items()},
            "history": {
                name: [asdict(update) for update in history]
                for name, history in self.history.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the scheduler was that gave this state.

        Raises:
            ValueError: that one had other layers, or it is no such state; nothing is changed.
        """
        kinds = {name: type(layer).__name__ for name, layer in self.layers.items()}
        own = {name: (kinds[name], len(m.histogram.counts)) for name, m in self.layers.items()}
        needed = {"steps", "kinds", "counts", "history"}
        if not needed <= state.keys():
            raise ValueError(
                f"state has {sorted(state)}; allowed is what state_dict() of an "
                "ActivationScheduler gave"
            )
        given = {name: (state["kinds"][name], len(n)) for name, n in state["counts"].items()}
        if list(given.items()) != list(own.items()):
            raise ValueError(
                f"state has layers, with their kinds and channels, {given}; allowed are those of "
                f"the model, {own}"
            )
        for name, kind in self._kinds.items():
            saved, needed = set(state.get(name, {})), set(kind.state())
            if saved != needed:
                raise ValueError(
                    f"state has {sorted(saved)} of the {name}; allowed are {sorted(needed)}"
                )
        self.steps = state["steps"]
        for name, kind in self._kinds.items():
            kind.load_state(state[name])
        for name, counts in state["counts"].items():
            self.layers[name].histogram.counts.copy_(counts)
        self.history = {
            name: [Update(**update) for update in history]
            for name, history in state["history"].items()
        }


class Tables:
    """The layers that are tables, and the engine's side of them."""

    def __init__(self, layers: dict[str, DynamicActivation], streams: Streams) -> None:
        self.layers, self.streams = layers, streams
        self.state, self.load_state, self.absorb = streams.state, streams.load_state, streams.absorb

    def calibrate(self) -> None:
        self.streams.calibrate()
        self._hand_out()

    def update(self, scheduler: ActivationScheduler, trust: float) -> dict[str, Update]:
        outcome = self.streams.update(trust=trust, step_size=scheduler.step_size)
        self._hand_out()
        return {
            name: Update(
                step=scheduler.steps,
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
            layer.table.copy_(table)
            layer.histogram.place.copy_(places[i][:, None])


class Placed:
    """The layers whose bump sits where the input is."""

    def __init__(self, layers: dict[str, DynamicCRReLU]) -> None:
        self.layers = layers
        self.channels = [layer.num_parameters for layer in layers.values()]
        self.places = Places(sum(self.channels))
        self.state, self.load_state = self.places.state, self.places.load_state

    def absorb(self, counts: Tensor, keep: float) -> None:
        self.counts, self.keep = counts.double(), keep

    def calibrate(self) -> None:
        self.places.follow(self.counts, 0.0)
        self._hand_out()

    def update(self, scheduler: ActivationScheduler, trust: float) -> dict[str, Update]:
        inputs = self._inputs()
        before = self._outputs(inputs)
        measured = self.places.follow(self.counts, self.keep).split(self.channels)
        self._hand_out()
        entropies = _entropies(before + self._outputs(inputs))
        not_finite = self.places.not_finite.split(self.channels)
        return {
            name: Update(
                step=scheduler.steps,
                entropy_before=entropies[i],
                entropy=entropies[len(self.layers) + i],
                location=layer.histogram.place[0].mean().item(),
                scale=layer.histogram.place[1].mean().item(),
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
            sample(counts[_some(layer), 1:ABOVE], layer.histogram.place[:, _some(layer)].cpu())
            for counts, layer in by_layer
        ]

    def _outputs(self, inputs: list[Tensor]) -> list[Tensor]:
        """What the layers make of these, as they are now."""
        outputs = []
        for x, layer in zip(inputs, self.layers.values(), strict=True):
            epsilon = _epsilons(layer)[_some(layer)]
            place = layer.histogram.place[:, _some(layer)].cpu()
            outputs.append(crrelu_at(x, epsilon, place, channel_dim=0))
        return outputs

    def _hand_out(self) -> None:
        places = torch.stack([self.places.location, self.places.scale]).split(self.channels, 1)
        for layer, place in zip(self.layers.values(), places, strict=True):
            layer.histogram.place.copy_(place)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _known(entropy: Tensor) -> float | None:
    return None if entropy.isnan() else entropy.item()


def _epsilons(layer: DynamicCRReLU) -> Tensor:
    """All of them, on the CPU, also where they are spread over ranks, as by fully_shard."""
    epsilon: Any = layer.epsilon.detach()
    whole: Tensor = epsilon.full_tensor() if hasattr(epsilon, "full_tensor") else epsilon
    return whole.float().cpu()


def _entropies(samples: list[Tensor]) -> list[float | None]:
    """Of each tensor of samples, the mean over its rows; None if all of these have NaN."""
    from scipy.stats import differential_entropy

    known = [y[~y.isnan().any(-1)] for y in samples]
    if not any(map(len, known)):
        return [None] * len(samples)
    # At once: scipy's way to the computation takes longer than that.
    of_rows = torch.from_numpy(differential_entropy(torch.cat(known), axis=-1))
    parts = of_rows.split([len(y) for y in known])
    return [part.mean().item() if len(part) else None for part in parts]


def _some(layer: DynamicCRReLU) -> slice:
    """Up to 32 channels, which stand for all where all would take long."""
    return slice(None, None, -(-layer.num_parameters // 32))
