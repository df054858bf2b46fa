"""Descent on the output's entropy, in steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Integral, Real

from scipy.interpolate import BSpline

from crrelu_ext.eafo.activations import CorrectedActivation, first_derivative
from crrelu_ext.eafo.densities import DensityLike
from crrelu_ext.eafo.problem import RESOLVED, Problem, analyse, inside
from crrelu_ext.eafo.span import FLOOR, MOST, Span
from crrelu_ext.elementwise import Function

STATIONARY = 1e-8
"""Where even the largest step would lower the entropy by less, in nats, the descent ends."""
VANISHES = "D vanishes, as for the worst activation"
BLOCKED = "no step among these functions lowers H and keeps f' above its floor"
WANTED = 0.3
"""The fall, in nats, that a step among functions begins with."""
HALVINGS = 30
SUFFICIENT = 1e-4
"""The part of the fall that the slope promises with which a step is content."""


@dataclass(frozen=True)
class Step:
    """What one step did; entropies in nats."""

    step_size: float
    """C, in f + C D."""
    slope: float
    """The derivative by C, at 0, of what falls: H, or with a fixed variance H - ½ log var."""
    entropy_before: float
    entropy_after: float
    """Of the function that is returned, not of its expansion in C."""
    margin: float
    """The least f_after'/f_before' (without rescaling): 1 - C / (the C that ends monotonicity)."""
    tail_mass: float
    """The probability beyond the support, where f is only continued."""
    error: float
    """An estimate of the error of entropy_after."""


@dataclass(frozen=True)
class Improvement:
    """The outcome of :func:`improve`.

    ``activation`` is a callable on tensors of any shape, float dtype and device, differentiable.
    """

    activation: Function
    steps: tuple[Step, ...]
    stopped: str | None
    """Why there are fewer steps than were asked for, if there are."""


def improve(
    activation: Function,
    density: DensityLike,
    *,
    steps: int = 1,
    step_size: float | None = None,
    fixed_variance: bool = False,
    functions: int | None = None,
) -> Improvement:
    """Lowers the entropy of f(X) by steps f + C D, with D the correction.

    A step is halved until the entropy falls by what the slope promises, or a ten-thousandth of it,
    and f' keeps its sign everywhere: of a monotone function comes a monotone one. The descent ends
    before the number of steps where D vanishes, at the worst activation, or where a later step
    meets what would be refused of a first one.

    Args:
        activation: f, a callable on tensors; not flat anywhere, and without ``functions`` such that
            D does not jump.
        density: of x.
        steps: how many, at most.
        step_size: C of every step, before it is halved; None takes half of what monotonicity
            allows, or with ``functions`` what would lower H by 0.3 nats; longer ones do no harm
            there.
        fixed_variance: descend on H - ½ log var, and rescale each function to the mean and variance
            of the given one, so that nothing is won by mere scale.
        functions: take the steps among so many Hermite functions, along D's projection, such that
            f' keeps a fifth of the slope at the start (before rescaling): so there can be many
            steps, and D may jump. None steps along D itself. Of a monotone activation.

    Raises:
        ValueError: there is no such direction, and why; or ``step_size`` is beyond monotonicity
            (without ``functions``), or even a small part of it raises the entropy; or ``steps`` or
            ``functions`` is not a whole number in its range.
    """
    refuse_unless_steps(steps)
    if functions is not None and not (
        isinstance(functions, int | Integral) and 0 < functions <= MOST
    ):
        raise ValueError(f"functions is {functions!r}; allowed are None and ints from 1 to {MOST}")
    if step_size is not None and not (
        isinstance(step_size, float | Real) and 0 < step_size < math.inf
    ):
        raise ValueError(f"step_size is {step_size!r}; allowed are None and positive numbers")
    problem = analyse(activation, density)
    if fixed_variance and problem.variance == math.inf:
        raise ValueError("fixed_variance: the output's variance is infinite, or not resolved")
    if functions is not None and not problem.monotone:
        fold = problem.folds[0].item()
        raise ValueError(
            f"activation turns at x = {fold:.6g}; allowed with functions are monotone ones"
        )
    place = _Place(problem, activation, 1.0, None)
    done: list[Step] = []
    stopped = None
    while len(done) < steps and not stopped:
        try:
            taken = _descend(place, step_size, fixed_variance, functions)
        except ValueError as error:
            if not done:
                raise
            stopped = str(error)
        else:
            if taken:
                place, step = taken
                done.append(step)
            else:
                stopped = f"f is stationary: {VANISHES if functions is None else BLOCKED}"
    return Improvement(place.problem.activation, tuple(done), stopped)


def refuse_unless_steps(steps: int) -> None:
    """Raises a ValueError unless there is one or more."""
    if not isinstance(steps, int | Integral) or steps < 1:
        raise ValueError(f"steps is {steps!r}; allowed are whole numbers from 1 on")


@dataclass(frozen=True)
class _Place:
    """Where the descent stands: at gain · base + a correction."""

    problem: Problem
    base: Function
    gain: float
    correction: BSpline | None

    def moved(self, direction: BSpline, size: float, fixed_variance: bool) -> _Place:
        """After a step; with a fixed variance also rescaled to the mean and variance of before."""
        coefficients = size * direction.c
        if self.correction is not None:
            coefficients = self.correction.c + coefficients
        place = self._at(self.gain, BSpline(direction.t, coefficients, direction.k))
        if not fixed_variance:
            return place
        old, new = self.problem.core, place.problem.core
        mean, variance = old.mean_and_variance()
        new_mean, new_variance = new.mean_and_variance()
        factor = (variance / new_variance).sqrt().item()
        # The B-splines add up to 1: a constant is added to all coefficients.
        coefficients = factor * coefficients + (mean - factor * new_mean).item()
        return self._at(factor * self.gain, BSpline(direction.t, coefficients, direction.k))

    def smooth(
        self, functions: int, step_size: float | None, scale_free: bool
    ) -> tuple[BSpline, float]:
        """D's projection and a step's C; or, where C times that would bring f' too low, the nearest
        direction with which it does not.

        Args:
            step_size: C; None for one with which H would fall by 0.3 nats, if it fell on as at the
                start and there were no floor.
        """
        core, grid = self.problem.core, self.problem.grid
        span = Span(core, functions, scale_free)
        if not span.resolved.all():
            raise ValueError(
                f"functions is {functions}: so many are not told apart, by integrals weighted with "
                "1/f'; take fewer, or a density with lighter tails, where f' is not so small"
            )
        if step_size is None:
            slope = self.problem.slope(span.jet(span.downwards), scale_free)
            step_size = WANTED / abs(slope) if slope else 1.0
        floor = FLOOR * (self.gain * first_derivative(self.base, inside(grid))).abs()
        nearest = span.nearest(step_size * span.downwards, floor[None])
        return grid.spline(span.jet(nearest).value / step_size), step_size

    def _at(self, gain: float, correction: BSpline) -> _Place:
        activation = CorrectedActivation(self.base, gain, self.problem.grid, correction)
        return _Place(replace(self.problem, activation=activation), self.base, gain, correction)


def _descend(
    place: _Place, step_size: float | None, fixed_variance: bool, functions: int | None
) -> tuple[_Place, Step] | None:
    """One step with backtracking; None where there is nothing to gain."""
    problem = place.problem
    if functions is None:
        spline = problem.direction(scale_free=fixed_variance)
    else:
        spline, size = place.smooth(functions, step_size, scale_free=fixed_variance)
    direction = problem.grid.jet(spline)
    slope = problem.slope(direction, scale_free=fixed_variance)
    bound = problem.bound(direction)
    largest = bound if functions is None else size
    if not direction.value.any() or abs(slope) * largest < STATIONARY:
        return None
    if functions is None:
        size = _size_along_d(step_size, slope, bound)
    finer = 2 * problem.grid.knots - 1  # the entropy is the same, and f' keeps its sign between
    before = replace(problem, knots=finer).core.f.first
    for _ in range(HALVINGS):
        moved = place.moved(spline, size, fixed_variance)
        check = replace(moved.problem, knots=finer)
        error = moved.problem.error + abs(check.entropy - moved.problem.entropy)
        falls = moved.problem.entropy <= problem.entropy + SUFFICIENT * size * slope
        if falls and error <= RESOLVED and (check.core.f.first * before >= 0).all():
            return moved, Step(
                step_size=size,
                slope=slope,
                entropy_before=problem.entropy,
                entropy_after=moved.problem.entropy,
                margin=1 - size / bound,
                tail_mass=max(0.0, problem.missing_mass),
                error=error,
            )
        size /= 2
    raise ValueError(
        f"the entropy does not measurably fall even with C = {size:.3g}, though its slope is "
        f"{slope:.4g}: f has details that are not resolved. Smooth the activation or the density"
    )


def _size_along_d(step_size: float | None, slope: float, bound: float) -> float:
    """C, or why there is none."""
    if slope >= 0:
        raise ValueError(
            f"the entropy does not fall along D: its slope is {slope:.4g}. A kink of the "
            "activation at which D is not zero does that: smooth it"
        )
    if step_size is None:
        return bound / 2
    if step_size >= bound:
        raise ValueError(
            f"step_size is {step_size:g}; allowed is less than {bound:.6g}, up to where f + C D "
            "keeps the sign of its slope"
        )
    return step_size
