"""Steps among Hermite functions: the projection is what quadrature says, and a descent goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial import HermiteE
from scipy.integrate import quad
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import Distribution, Laplace, Normal, StudentT, Uniform
from torch.nn import functional as F

from crrelu_ext import eafo
from crrelu_ext.eafo.grid import Grid, Jet, Problems
from crrelu_ext.eafo.span import FLOOR, MOST, Span, hermite

from .cases import NORMAL, identity

REACH = math.asinh(7.0)


def normal_problems(f: Callable[[Tensor], Jet], *places: tuple[float, float]) -> Problems:
    """Under N(location, scale²) of each place."""
    location, scale = torch.tensor(places, dtype=torch.float64).T
    grid = Grid(
        location, scale, torch.tensor([[-REACH, REACH]]).double().expand(len(scale), 2), 257
    )
    log_p = -(((grid.x - location[:, None]) / scale[:, None]) ** 2) / 2
    return Problems(grid, log_p - (scale * math.sqrt(2 * math.pi)).log()[:, None], f(grid.x))


def softplus(x: Tensor) -> Jet:
    first = torch.sigmoid(x)
    return Jet(F.softplus(x), first, first * (1 - first))


def line(x: Tensor) -> Jet:
    return Jet(x, torch.ones_like(x), torch.zeros_like(x))


def psi(k: int, u: float, order: int = 0) -> float:
    """The k-th Hermite function, or its derivative, by numpy's polynomials."""
    polynomial = HermiteE.basis(k)
    for _ in range(order):  # (h exp(-u²/2))' = (h' - u h) exp(-u²/2)
        polynomial = polynomial.deriv() - HermiteE([0, 1]) * polynomial
    return float(polynomial(u)) * math.exp(-u * u / 2) / math.sqrt(math.factorial(k))


def test_hermite_functions() -> None:
    grid = normal_problems(line, (0.0, 1.0), (2.0, 0.5)).grid
    basis = hermite(grid, MOST)
    for k in (0, 1, 7, MOST - 1):
        for number, part in enumerate((basis.value, basis.first, basis.second)):
            for row, (location, scale) in enumerate(((0.0, 1.0), (2.0, 0.5))):
                for knot in (0, 60, 128, 150, 256):
                    u = (grid.x[row, knot].item() - location) / scale
                    expected = psi(k, u, number) / scale**number
                    tolerance = (1e-12, 1e-5, 1e-3)[number]  # of the splines
                    assert part[row, knot, k].item() == pytest.approx(expected, abs=tolerance)


def test_far_out_they_are_zero() -> None:
    """Where the polynomials alone would overflow."""
    ends = torch.tensor([[-700.0, 700.0]], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    basis = hermite(Grid(one, one, ends, 101), MOST)
    for part in (basis.value, basis.first, basis.second):
        assert part.isfinite().all()
        assert (part[0, [0, -1]].abs() < 1e-300).all()


def test_the_projection_is_the_one_by_quadrature() -> None:
    n, location, scale = 5, 0.5, 1.5
    span = Span(normal_problems(softplus, (location, scale)), n)

    def integral(of: Callable[[float], float]) -> float:
        """By du."""
        return quad(of, -7, 7, epsabs=1e-13, epsrel=1e-12, limit=200)[0]

    def slope(u: float) -> float:
        return 1 / (1 + math.exp(-(location + scale * u)))

    def phi(u: float) -> float:
        return math.exp(-u * u / 2) / math.sqrt(2 * math.pi)

    def fall(k: int) -> float:
        return -integral(lambda u: phi(u) * psi(k, u, 1) / slope(u)) / scale

    def product(j: int, k: int) -> float:
        return integral(lambda u: psi(j, u) * psi(k, u) / slope(u)) * scale

    falls = [fall(k) for k in range(n)]
    metric = [[product(j, k) for j in range(n)] for k in range(n)]
    expected = np.linalg.solve(metric, falls)
    assert span.downwards[0].numpy() == pytest.approx(expected, rel=1e-8)


def test_under_a_gram_charlier_density_the_span_holds_d() -> None:
    """f a line, p = φ (1 + 0.1 He_3/√3! + 0.2 He_4/√4!): D = p' needs six functions."""
    problems = normal_problems(line, (0.0, 1.0))
    basis = hermite(problems.grid, 5)
    weights = torch.tensor([1.0, 0.0, 0.0, 0.1, 0.2], dtype=torch.float64)
    weights /= math.sqrt(2 * math.pi)
    p, dp = ((part @ weights) for part in (basis.value, basis.first))
    span = Span(Problems(problems.grid, p.log(), problems.f), 6)
    assert torch.allclose(span.jet(span.downwards).value, dp, rtol=0, atol=1e-9)
    fewer = Span(Problems(problems.grid, p.log(), problems.f), 5)
    assert not torch.allclose(fewer.jet(fewer.downwards).value, dp, rtol=0, atol=1e-3)


def test_more_functions_come_nearer_to_d() -> None:
    problems = normal_problems(softplus, (0.0, 1.0))
    dp = -problems.grid.x * problems.p
    d = problems.correction(dp)
    missed = []
    for functions in (2, 4, 8, MOST):
        span = Span(problems, functions)
        missed.append(((span.jet(span.downwards).value - d).abs().max() / d.abs().max()).item())
    assert missed == sorted(missed, reverse=True)
    assert missed[0] == pytest.approx(0.0152, rel=0.01)
    assert missed[2] == pytest.approx(1.4e-4, rel=0.05)


def test_the_nearest_step_is_the_one_of_a_general_solver() -> None:
    problems = normal_problems(softplus, (0.0, 1.0), (1.0, 0.5))
    span = Span(problems, 4)
    floor = FLOOR * problems.f.first
    short, long = 0.01 * span.downwards, 20 * span.downwards
    assert torch.equal(span.nearest(short, floor), short)
    nearest = span.nearest(long, floor)
    after = problems.f.first + span.jet(nearest).first
    assert (after > floor - 1e-9).all()
    assert ((after - floor).amin(-1).abs() < 1e-9).all()
    basis = hermite(problems.grid, 4)
    for i in range(2):
        weights = problems.grid.weights[i] / problems.f.first[i]
        metric = (basis.value[i].T @ (weights[:, None] * basis.value[i])).numpy()
        rows, room = basis.first[i].numpy(), (problems.f.first - floor)[i].numpy()
        wanted = long[i].numpy()
        found = minimize(
            lambda c, m=metric, w=wanted: (c - w) @ m @ (c - w),
            np.zeros(4),
            jac=lambda c, m=metric, w=wanted: 2 * m @ (c - w),
            constraints={"type": "ineq", "fun": lambda c, a=rows, b=room: a @ c + b},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert nearest[i].numpy() == pytest.approx(found.x, abs=1e-5)


@pytest.mark.parametrize("functions", [1, 2, 8, MOST])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3, 1e12])
def test_steps_of_any_size_stay_above_the_floor(functions: int, size: float) -> None:
    generator = torch.Generator().manual_seed(functions)
    problems = normal_problems(softplus, (0.0, 1.0), (3.0, 0.1), (-1.0, 2.0))
    span = Span(problems, functions)
    for part in (0.0, 0.2, 0.9):
        floor = part * problems.f.first
        at_random = torch.randn(3, functions, generator=generator, dtype=torch.float64)
        for wanted in (size * span.downwards, size * at_random):
            after = problems.f.first + span.jet(span.nearest(wanted, floor)).first
            assert (after >= floor - 1e-6 * problems.f.first).all()


def test_below_the_floor_it_does_not_sink_further() -> None:
    problems = normal_problems(softplus, (0.0, 1.0))
    span = Span(problems, 6)
    floor = 2 * problems.f.first
    assert (span.jet(span.nearest(span.downwards, floor)).first > -1e-9).all()


DESCENTS: list[tuple[Callable[[Tensor], Tensor], Distribution]] = [
    (F.softplus, NORMAL),
    (lambda x: -F.softplus(x), NORMAL),
    (torch.tanh, Normal(0.3, 1.0)),
    (F.elu, NORMAL),  # f'' jumps
    (lambda x: F.leaky_relu(x, 0.1), Normal(1.0, 1.0)),  # f' jumps
    (identity, Laplace(0.0, 1.0)),  # p' jumps
    (F.softplus, Uniform(-1.0, 1.0)),  # p jumps
]


@pytest.mark.parametrize("fixed_variance", [False, True])
@pytest.mark.parametrize(("activation", "density"), DESCENTS)
def test_a_descent_goes_on(
    activation: Callable[[Tensor], Tensor], density: Distribution, fixed_variance: bool
) -> None:
    result = eafo.improve(activation, density, steps=8, functions=6, fixed_variance=fixed_variance)
    assert result.stopped is None
    assert len(result.steps) == 8
    for step in result.steps:
        assert step.entropy_after < step.entropy_before
        assert step.slope < 0
        if not fixed_variance:  # H is concave, and falls at least as at the start
            fall = step.entropy_before - step.entropy_after
            assert fall >= -step.slope * step.step_size * (1 - 1e-6)
        assert step.error < 1e-5
    fall = result.steps[0].entropy_before - result.steps[-1].entropy_after
    assert fall > 0.005
    x = torch.linspace(-4, 4, 1001, dtype=torch.float64, requires_grad=True)
    (before,) = torch.autograd.grad(activation(x).sum(), x)
    (after,) = torch.autograd.grad(result.activation(x).sum(), x)
    if not fixed_variance:  # which brings a factor with it
        assert (after / before).min() > 0.99 * FLOOR
    assert (after * before > 0).all()


def test_how_far_softplus_goes() -> None:
    along_d = eafo.improve(F.softplus, NORMAL, steps=20)
    assert along_d.stopped is not None
    assert "D is not resolved" in along_d.stopped
    assert [round(step.entropy_after, 3) for step in along_d.steps][2:] == [0.202]
    among = eafo.improve(F.softplus, NORMAL, steps=20, functions=8)
    assert len(among.steps) == 20
    assert among.steps[-1].entropy_after == pytest.approx(-0.594, abs=5e-4)


def test_where_the_slope_falls_off_fast() -> None:
    """In the tails f' is e^-30 of its size, and a step must not be less accurate than that."""
    wide = eafo.improve(F.softplus, Normal(0.0, 5.0), steps=10, functions=8)
    assert wide.stopped is None
    assert wide.steps[0].entropy_before - wide.steps[-1].entropy_after > 0.05


def test_a_decreasing_function_is_the_mirror_image() -> None:
    up, down = (
        eafo.improve(f, NORMAL, steps=4, functions=5)
        for f in (F.softplus, lambda x: -F.softplus(x))
    )
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    assert torch.allclose(up.activation(x), -down.activation(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("gain", [1e-6, 1e6])
def test_units_do_not_matter(gain: float) -> None:
    """Of the output; those of the input are the density's own."""
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    one = eafo.improve(F.softplus, NORMAL, steps=4, functions=6)
    other = eafo.improve(lambda x: gain * F.softplus(x), NORMAL, steps=4, functions=6)
    assert torch.allclose(gain * one.activation(x), other.activation(x), rtol=1e-6)


def test_where_the_projection_vanishes_the_descent_ends() -> None:
    with_one = eafo.improve(F.softplus, NORMAL, steps=50, functions=1)
    assert with_one.stopped is not None
    assert with_one.stopped.startswith("f is stationary: no step among these functions")
    assert 0 < len(with_one.steps) < 50
    worst = eafo.worst_activation(NORMAL)
    assert eafo.improve(worst, NORMAL, functions=4).steps == ()


def test_a_step_of_a_given_size() -> None:
    """A small one is C times the projection."""
    step, difference = 1e-3, torch.linspace(-4, 4, 101, dtype=torch.float64)
    derived = eafo.improve(F.softplus, NORMAL, step_size=step, functions=MOST).activation
    plain = eafo.improve(F.softplus, NORMAL, step_size=step).activation
    moved = (plain(difference) - F.softplus(difference)).abs().max()
    assert (derived(difference) - plain(difference)).abs().max() < 1e-3 * moved


REFUSED: list[tuple[Callable[[Tensor], Tensor], Any, str]] = [
    (F.gelu, 4, "activation turns at x = -0.75.*allowed with functions are monotone ones"),
    (F.softplus, 0, "functions is 0; allowed are None and ints from 1 to 16"),
    (F.softplus, 17, "functions is 17"),
    (F.softplus, 2.5, "functions is 2.5"),
    (F.relu, 4, "an atom"),
]


@pytest.mark.parametrize(("activation", "functions", "match"), REFUSED)
def test_refusals(activation: Callable[[Tensor], Tensor], functions: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        eafo.improve(activation, NORMAL, functions=functions)


def test_softplus_under_heavy_tails() -> None:
    """As docs/theory.md says."""
    none = eafo.improve(F.softplus, StudentT(5.0), functions=8)
    assert none.steps == ()
    assert "keeps f' above its floor" in str(none.stopped)
    with pytest.raises(ValueError, match=r"not told apart.*lighter tails"):
        eafo.improve(F.softplus, StudentT(3.0), functions=2)
    assert len(eafo.improve(F.softplus, StudentT(10.0), functions=8, steps=3).steps) == 3


def test_functions_that_are_not_told_apart() -> None:
    """Between -1 and 1 the functions beyond the eighth are sums of the others, to float64."""
    with pytest.raises(ValueError, match="functions is 16: so many are not told apart"):
        eafo.improve(F.softplus, Uniform(-0.5, 0.5), functions=16)
