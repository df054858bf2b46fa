"""What dynamic EAFO is held against: steps of the size of its own, but not in its direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from numpy.polynomial import hermite_e
from torch import Generator, Tensor, nn

from crrelu_ext import ActivationScheduler, DynamicActivation
from crrelu_ext.eafo.grid import Jet, Problems
from crrelu_ext.eafo.streaming import MARGIN, Outcome, Streams
from crrelu_ext.scheduler import Tables

from .task import generator

Instead = Callable[[Tensor, Tensor, Generator], Tensor]
"""From EAFO's steps, (layers, knots), the places, in scales from the location, of the same shape,
and chance: to the steps that are taken."""
DEGREE = 5


def opposite(steps: Tensor, s: Tensor, chance: Generator) -> Tensor:
    """The correction with the other sign: up the entropy."""
    return -steps


def random(steps: Tensor, s: Tensor, chance: Generator) -> Tensor:
    """exp(-s²/2) times a polynomial with normal coefficients in the orthonormal Hermite
    polynomials, for each layer another, as large at its largest as EAFO's step.

    EAFO's own steps from a line under a normal density are of this form.
    """
    polynomials = hermite_e.hermevander(s.numpy(), DEGREE)
    norms = torch.tensor(
        [math.sqrt(math.factorial(k)) for k in range(DEGREE + 1)], dtype=torch.float64
    )
    basis = torch.from_numpy(polynomials) / norms * torch.exp(-(s**2) / 2)[..., None]
    weights = torch.randn(len(steps), 1, DEGREE + 1, generator=chance, dtype=torch.float64)
    shapes = (weights * basis).sum(-1)
    return shapes * (steps.abs().amax(-1) / shapes.abs().amax(-1))[:, None]


class _Streams(Streams):
    """Lets EAFO find its step, or refuse, and takes another one of the same sup-norm instead.

    It is made smaller where it would use up more than the same tenth of the function's increase.
    """

    def __init__(
        self,
        starts: Sequence[Callable[[Tensor, Tensor], Tensor]],
        instead: Instead,
        chance: Callable[[], Generator],
    ) -> None:
        super().__init__(starts)
        self._instead, self._chance = instead, chance

    def _direction(self, problems: Problems) -> tuple[Jet, Tensor]:
        self._problem = problems
        self._found, missed = super()._direction(problems)
        return self._found, missed

    def update(self, *, trust: float, step_size: float | None = None) -> Outcome:
        outcome = super().update(trust=trust, step_size=step_size)
        grid = self._problem.grid
        steps = outcome.step_size[:, None] * self._found.value
        others = self._instead(steps, torch.sinh(grid.t), self._chance())
        taken = grid.jet(grid.spline(others))
        part = (MARGIN * self._problem.bound(taken)).clamp(max=1)
        moved = self._problem.moved(taken, part)
        accepted = outcome.step_size > 0
        self.values = moved.f.value.where(accepted[:, None], self.values)
        after = moved.entropy().where(accepted, outcome.entropy_before)
        size = (part * outcome.step_size).where(accepted, 0.0)
        return replace(outcome, entropy_after=after, step_size=size)


class Control(ActivationScheduler):
    """An ActivationScheduler that takes other steps; their chance is the seed's and the step's.

    The updates that it tells of have the C of EAFO's step, times the part that was taken. All of
    the model's dynamic layers must be tables.
    """

    def __init__(self, model: nn.Module, *, instead: Instead, seed: int, **options: Any) -> None:
        super().__init__(model, **options)
        tables = {n: m for n, m in self.layers.items() if isinstance(m, DynamicActivation)}
        starts = [layer.start for layer in tables.values()]
        self.streams = _Streams(starts, instead, lambda: generator(seed, self.steps))
        self._kinds = {"tables": Tables(tables, self.streams)}
