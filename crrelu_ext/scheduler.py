"""Dynamic EAFO: replaces the functions of a network's dynamic activations while it trains."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn

from crrelu_ext._ops import native, problem
from crrelu_ext.derived import monotone_slopes
from crrelu_ext.dynamic import DynamicActivation


class Writer(Protocol):
    """What torch.utils.tensorboard's SummaryWriter has."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...


@dataclass(frozen=True)
class Update:
    """What an update did to one layer; entropies in nats, of the output, under the histogram."""

    step: int
    """Of the scheduler, from 1."""
    entropy_before: float
    entropy: float
    location: float
    scale: float
    step_size: float
    """C in f + C D; 0 where the theory refused."""
    refusal: str | None
    not_finite: int
    """Elements counted so far that were NaN or infinite."""


class ActivationScheduler:
    """Takes a small step of EAFO at intervals, on all dynamic activations of a model at once.

    ``step()`` stands beside the optimizer's. In the warm-up the histograms find, four times, where
    each layer's input lies. Then, every so many steps, each layer's f goes to f + C D, where D is
    the theory's correction for the density measured since, with exponential forgetting. C is at
    most a tenth of what would end the increase of f, at most ``step_size``, and such that f changes
    nowhere by more than ``trust`` times the input's scale; ``trust`` goes down to zero along a line
    over ``total`` steps. Where the theory refuses, or the measured entropy does not fall, the
    function stays, and the history says why. Under torch.distributed the counts are added up over
    all ranks, so that all derive the same functions.

    Args:
        model: holds the :class:`crrelu_ext.DynamicActivation` layers, at least one.
        every: steps from update to update.
        warmup: steps before the first interval; at least 4.
        total: steps after which nothing changes any more.
        step_size: the largest C; None for no bound of its own.
        trust: the largest |Δf| of the first update, in scales of the input.
        forgetting: the part of the old histogram that an update drops.
        writer: a SummaryWriter, for TensorBoard; None for none.

    Attributes:
        history: by layer name, its updates in order.

    Raises:
        ValueError: no such layers, or a number out of range. RuntimeError: no native kernels, which
        do the measuring. ImportError: no scipy (``pip install crrelu-ext[eafo]``).
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
        from crrelu_ext.eafo.streaming import Streams

        if not native:
            raise RuntimeError(f"only the native kernels measure an activation's input. {problem}")
        for name, value, least in (("every", every, 1), ("warmup", warmup, 4), ("total", total, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}; allowed are {least} and more")
        if not trust > 0 or not (step_size is None or step_size > 0):
            raise ValueError(f"trust is {trust}, step_size {step_size}; allowed are positive ones")
        if not 0 <= forgetting <= 1:
            raise ValueError(f"forgetting is {forgetting}; allowed are 0 to 1")
        self.layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, DynamicActivation)
        }
        if not self.layers:
            raise ValueError("model has no DynamicActivation; replace_activation puts them in")
        self.every, self.warmup, self.total = every, warmup, total
        self.step_size, self.trust, self.forgetting = step_size, trust, forgetting
        self.writer = writer
        self.steps = 0
        self.streams = Streams([layer.start for layer in self.layers.values()])
        self.history: dict[str, list[Update]] = {name: [] for name in self.layers}

    def step(self) -> None:
        """After each of the optimizer's steps."""
        self.steps += 1
        trust = self.trust * (1 - self.steps / self.total)
        if self.steps <= self.warmup:
            if self.steps in (self.warmup * part // 8 for part in (1, 2, 4, 8)):
                self._collect()
                self.streams.calibrate()
                self._hand_out()
        elif (self.steps - self.warmup) % self.every == 0 and trust > 0:
            self._collect()
            self._update(trust)
            self._hand_out()

    def _collect(self) -> None:
        counts = torch.stack([layer.counts for layer in self.layers.values()])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(counts)
        for layer in self.layers.values():
            layer.counts.zero_()
        self.streams.absorb(counts.cpu(), 1 - self.forgetting)

    def _update(self, trust: float) -> None:
        outcome = self.streams.update(trust=trust, step_size=self.step_size)
        for i, (name, history) in enumerate(self.history.items()):
            update = Update(
                step=self.steps,
                entropy_before=outcome.entropy_before[i].item(),
                entropy=outcome.entropy_after[i].item(),
                location=self.streams.location[i].item(),
                scale=self.streams.scale[i].item(),
                step_size=outcome.step_size[i].item(),
                refusal=outcome.refusals[i],
                not_finite=int(self.streams.not_finite[i].item()),
            )
            history.append(update)
            if self.writer:
                for quantity in ("entropy", "location", "scale", "step_size", "not_finite"):
                    value = getattr(update, quantity)
                    self.writer.add_scalar(f"activation/{name}/{quantity}", value, self.steps)

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
            layer.place.copy_(places[i])

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
            "streams": self.streams.state(),
            "counts": {name: layer.counts.clone() for name, layer in self.layers.items()},
            "history": {
                name: [asdict(update) for update in history]
                for name, history in self.history.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the scheduler was that gave this state.

        Raises:
            ValueError: that one had other layers; nothing is changed.
        """
        if list(state["counts"]) != list(self.layers):
            raise ValueError(
                f"state has layers {list(state['counts'])}; allowed are those of the model, "
                f"{list(self.layers)}"
            )
        self.steps = state["steps"]
        self.streams.load_state(state["streams"])
        for name, counts in state["counts"].items():
            self.layers[name].counts.copy_(counts)
        self.history = {
            name: [Update(**update) for update in history]
            for name, history in state["history"].items()
        }
