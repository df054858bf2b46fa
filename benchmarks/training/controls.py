"""What dynamic EAFO is held against: steps of the size of its own, but not in its direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from crrelu_ext import ActivationScheduler
from crrelu_ext.eafo.span import Span
from crrelu_ext.eafo.streaming import Outcome, Streams

from .task import generator

Instead = Callable[[Tensor, Generator], Tensor]
"""From EAFO's steps, as (layers, functions) coefficients of the Hermite functions, and chance: to
steps of any size, which are then made as large at their largest as EAFO's."""


def opposite(steps: Tensor, chance: Generator) -> Tensor:
    """Up the entropy."""
    return -steps


def random(steps: Tensor, chance: Generator) -> Tensor:
    """Anywhere in the same span, for each layer somewhere else."""
    return torch.randn(steps.shape, generator=chance, dtype=steps.dtype)


class _Streams(Streams):
    """Lets EAFO find its step, or refuse, and takes another one of the same sup-norm instead.

    That one, too, keeps the slopes above the floor, which may make it smaller.
    """

    def __init__(
        self,
        starts: Sequence[Callable[[Tensor, Tensor], Tensor]],
        instead: Instead,
        chance: Callable[[], Generator],
    ) -> None:
        super().__init__(starts)
        self._instead, self._chance = instead, chance

    def _step(
        self, span: Span, wanted: Tensor, floor: Tensor, reach: Tensor
    ) -> tuple[Tensor, Tensor]:
        step, part = super()._step(span, wanted, floor, reach)
        reach = part * span.largest(step)
        other = self._instead(step, self._chance())
        other = other * (reach / span.largest(other))[:, None]
        other, part_of_other = super()._step(span, other, floor, reach)
        self._taken = span.problems.moved(span.jet(other), part_of_other)
        return step, part

    def update(self, *, trust: float, step_size: float | None = None) -> Outcome:
        outcome = super().update(trust=trust, step_size=step_size)
        accepted = outcome.step_size > 0
        self.values = self._taken.f.value.where(accepted[:, None], self.values)
        after = self._taken.entropy().where(accepted, outcome.entropy_before)
        return replace(outcome, entropy_after=after)


class Control(ActivationScheduler):
    """An ActivationScheduler that takes other steps; their chance is the seed's and the step's.

    The updates that it tells of have the C of EAFO's step.
    """

    def __init__(self, model: nn.Module, *, instead: Instead, seed: int, **options: Any) -> None:
        self._instead, self._seed = instead, seed
        super().__init__(model, **options)

    def make_streams(self, starts: Sequence[Callable[[Tensor, Tensor], Tensor]]) -> Streams:
        self.streams = _Streams(starts, self._instead, lambda: generator(self._seed, self.steps))
        return self.streams
