"""The batched core: many problems at once are each one alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional as F

from crrelu_ext import eafo
from crrelu_ext.eafo.densities import bandwidths, smoothed_derivative, smoothed_log_prob
from crrelu_ext.eafo.grid import Grid, Jet, Problems

from .cases import sigmoid_slope


def grid_of(location: Tensor, scale: Tensor, knots: int, **options: bool) -> Grid:
    ends = torch.asinh(torch.tensor([-6.4, 6.4], dtype=torch.float64)).expand(len(location), 2)
    return Grid(location, scale, ends, knots, **options)


def softplus(x: Tensor) -> Jet:
    return Jet(F.softplus(x), torch.sigmoid(x), sigmoid_slope(x))


def descend(problems: Problems, dp: Tensor) -> tuple[Problems, Tensor]:
    """A step down, and its sizes C: half of what keeps f monotone, as improve takes it, or 0."""
    direction = problems.grid.jet(problems.grid.spline(problems.correction(dp)))
    bound = 1 / (-direction.first / problems.f.first).amax(-1).clamp(min=0)
    size = bound / 2
    size = size.where((problems.slope(direction) < 0) & size.isfinite(), 0.0)
    return problems.moved(direction, size), size


def test_48_problems_at_once() -> None:
    location = torch.linspace(-1, 1, 48, dtype=torch.float64)
    scale = torch.linspace(0.5, 2, 48, dtype=torch.float64)
    grid = grid_of(location, scale, 256)
    u = (grid.x - location[:, None]) / scale[:, None]
    log_p = -u * u / 2 - (scale * math.sqrt(2 * math.pi)).log()[:, None]
    problems = Problems(grid, log_p, softplus(grid.x))
    dp = -u / scale[:, None] * log_p.exp()
    direction = grid.jet(grid.spline(problems.correction(dp)))
    after, step_size = descend(problems, dp)
    for i in (0, 17, 47):
        density = Normal(location[i], scale[i])
        (step,) = eafo.improve(F.softplus, density).steps
        assert problems.entropy()[i].item() == pytest.approx(step.entropy_before, abs=1e-7)
        assert problems.slope(direction)[i].item() == pytest.approx(step.slope, abs=1e-6)
        assert step_size[i].item() == pytest.approx(step.step_size, rel=1e-3)
        assert after.entropy()[i].item() == pytest.approx(step.entropy_after, abs=1e-3)
    assert (after.f.first > 0).all()


def test_histograms_of_many_layers_at_once() -> None:
    layers = torch.randn(3, 5000, dtype=torch.float64) * torch.tensor([[0.5], [1.0], [3.0]])
    edges = torch.linspace(-10, 10, 401, dtype=torch.float64)
    counts = torch.stack([torch.histogram(layer, edges).hist for layer in layers])
    masses = counts / counts.sum(-1, keepdim=True)
    centers = ((edges[1:] + edges[:-1]) / 2).expand_as(counts)
    mean = (masses * centers).sum(-1)
    sigma = ((masses * (centers - mean[:, None]) ** 2).sum(-1)).sqrt()
    h0, h1 = (h[:, None, None] for h in bandwidths(counts.sum(-1), sigma))
    grid = grid_of(mean, sigma, 257)
    log_p = smoothed_log_prob(grid.x, centers, masses, h0)
    problems = Problems(grid, log_p, softplus(grid.x))
    for i in range(3):
        density = eafo.HistogramDensity(edges, counts[i])
        exact = eafo.output_entropy(F.softplus, density)
        assert problems.entropy()[i].item() == pytest.approx(exact, abs=1e-4)
    after, _ = descend(problems, smoothed_derivative(grid.x, centers, masses, h1))
    assert (after.entropy() < problems.entropy()).all()


def test_integrals_and_derivatives() -> None:
    one = torch.tensor([1.0], dtype=torch.float64)
    ends = torch.asinh(torch.tensor([[-3.0, 0.5, 2.0]], dtype=torch.float64) - 1)
    grid = Grid(one, one, ends, 201)
    values = torch.sin(grid.x)
    assert grid.integral(values).item() == pytest.approx(math.cos(3) - math.cos(2), abs=1e-10)
    running = torch.cos(torch.tensor(-3.0, dtype=torch.float64)) - torch.cos(grid.x)
    assert torch.allclose(grid.running_integral(values), running, rtol=0, atol=1e-10)
    jet = grid.jet(grid.spline(values))
    assert torch.allclose(jet.value, values, rtol=0, atol=1e-14)
    assert torch.allclose(jet.first, torch.cos(grid.x), rtol=0, atol=1e-8)
    assert torch.allclose(jet.second, -values, rtol=0, atol=1e-5)
    coarse = grid.coarser()
    assert torch.allclose(grid.every_second(grid.x), coarse.x)
    graded = Grid(one, one, ends, 401, graded=True)
    x = graded.x
    singular = (x - 0.5).abs().log().where(x != 0.5, 0.0)  # with weight 0
    exact = 3.5 * (math.log(3.5) - 1) + 1.5 * (math.log(1.5) - 1)
    assert graded.integral(singular).item() == pytest.approx(exact, abs=1e-6)


def test_where_nothing_descends_nothing_moves() -> None:
    """Under a logistic density the sigmoid is the worst activation; the softplus is not."""
    zero, one = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    ends = torch.asinh(torch.tensor([-23.0, 23.0], dtype=torch.float64)).expand(2, 2)
    grid = Grid(zero, one, ends, 513)
    p = sigmoid_slope(grid.x)
    dp = p * (1 - 2 * torch.sigmoid(grid.x))
    f = softplus(grid.x)
    f = Jet(*(torch.stack([a, b]) for a, b in (
        (torch.sigmoid(grid.x[0]), f.value[1]), (p[0], f.first[1]), (dp[0], f.second[1])
    )))  # fmt: skip
    after, step_size = descend(Problems(grid, p.log(), f), dp)
    assert step_size[0] == 0
    assert torch.equal(after.f.value[0], f.value[0])
    assert step_size[1] > 0
