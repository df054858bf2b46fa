"""Dynamic EAFO: moves the functions of a network's dynamic activations while it trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, distributed, nn

from crrelu_ext._ops import native, problem
from crrelu_ext.dynamic import DynamicActivation, DynamicCRReLU
from crrelu_ext.updates import Placed, Tables, Update

if TYPE_CHECKING:
    from crrelu_ext.eafo.streaming import Streams  # needs scipy


class Writer(Protocol):
    """What torch.utils.tensorboard's SummaryWriter has."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...


class ActivationScheduler:
    """Moves all dynamic activations of a model at intervals: tables by a small step of EAFO.

    ``step()`` stands beside the optimizer's. At an eighth, a quarter, half and all of the warm-up
    the histograms find where each layer's input lies; layers that have been trained go on from the
    place and the function that they have. Then, every so many steps, each :class:`DynamicCRReLU`
    takes the location and scale of its input; and the f of each :class:`DynamicActivation` goes to
    f + C D, where D is the theory's correction for the density measured since, with exponential
    forgetting, projected on eight Hermite functions; or to the nearest function whose slope is
    nowhere less than a fifth of that at the start. C is at most ``step_size``, and such that f
    changes nowhere by more than ``trust`` times the input's scale; ``trust`` goes down to zero
    along a line over ``total`` steps. Where the theory refuses, or the measured entropy does not
    fall, the function stays, and the history says why. Under torch.distributed the counts are added
    up over all ranks, so that all derive the same functions.

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
        ValueError: no such layers, or a number out of range. TypeError: no model. RuntimeError: no
        native kernels, which do the measuring. ImportError: no scipy, which the extra ``eafo``
        brings.
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
        if not isinstance(model, nn.Module):
            given = type(model).__name__
            raise TypeError(f"model has type {given}; allowed is a torch.nn.Module")
        if not native:
            raise RuntimeError(f"only the native kernels measure an activation's input. {problem}")
        import crrelu_ext.eafo  # noqa: F401  (says what to install where scipy is missing)

        for name, value, least in (("every", every, 1), ("warmup", warmup, 4), ("total", total, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; allowed are whole numbers from {least} on")
        if total < warmup:
            raise ValueError(f"total is {total}; allowed are numbers from warmup, {warmup}, on")
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
        for layer in self.layers.values():
            layer.histogram.counts.zero_()  # of another scheduler's time
        self.history: dict[str, list[Update]] = {name: [] for name in self.layers}
        tables = {n: m for n, m in self.layers.items() if isinstance(m, DynamicActivation)}
        placed = {n: m for n, m in self.layers.items() if isinstance(m, DynamicCRReLU)}
        self._kinds: dict[str, Tables | Placed] = {}
        if tables:
            streams = self.make_streams([layer.start for layer in tables.values()])
            self._kinds["tables"] = Tables(tables, streams, step_size)
        if placed:
            self._kinds["places"] = Placed(placed)

    def make_streams(self, starts: Sequence[Callable[[Tensor, Tensor], Tensor]]) -> Streams:
        """What moves the tables; a subclass that moves them otherwise has its own."""
        from crrelu_ext.eafo.streaming import Streams

        return Streams(starts)

    def step(self) -> None:
        """After each of the optimizer's steps."""
        if self.steps == 0:
            for kind in self._kinds.values():
                kind.begin()
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
                self._record(kind.update(self.steps, trust))

    def _collect(self) -> None:
        """The counts of all layers, over all ranks, to where they are used; empties the layers."""
        layers = self.layers.values()
        device = next(iter(layers)).histogram.counts.device
        counts = torch.cat([layer.histogram.counts.to(device) for layer in layers])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(counts)
        channels = [len(layer.histogram.counts) for layer in layers]
        by_layer = dict(zip(self.layers, counts.cpu().split(channels), strict=True))
        for layer in layers:
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
            **{name: kind.measured.state() for name, kind in self._kinds.items()},
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
        own = self.state_dict()
        given = state if isinstance(state, dict) else {}
        for part in ("kinds", "counts", *self._kinds, "steps"):
            form, needed = _form(given.get(part)), _form(own[part])
            if form != needed:
                raise ValueError(
                    f"state has {part} {form}; allowed is what state_dict() of a scheduler of such "
                    f"a model gave, with {needed}"
                )
        history = _history(given.get("history"), list(self.layers))
        self.steps = state["steps"]
        for name, kind in self._kinds.items():
            kind.measured.load_state(state[name])
        for name, counts in state["counts"].items():
            self.layers[name].histogram.counts.copy_(counts)
        self.history = history


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _form(state: object) -> str:
    """What states are compared by: the names in them, the shapes of tensors, text."""
    if isinstance(state, dict):
        return "{" + ", ".join(f"{name}: {_form(part)}" for name, part in state.items()) + "}"
    if isinstance(state, Tensor):
        return str(tuple(state.shape))
    return state if isinstance(state, str) else type(state).__name__


def _history(saved: Any, layers: list[str]) -> dict[str, list[Update]]:
    try:
        history = {name: [Update(**update) for update in ones] for name, ones in saved.items()}
    except (AttributeError, TypeError) as error:
        raise ValueError(f"state has a history that is none: {error}") from None
    if list(history) != layers:
        raise ValueError(f"state has a history of {list(history)}; allowed is one of {layers}")
    return history
