"""The entropy falls as its slope says, functions stay monotone, and refusals say why."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Gumbel, Laplace, Normal, StudentT, Uniform
from torch.nn import functional as F

from crrelu_ext import CRReLU, DynamicCRReLU, eafo
from crrelu_ext.eafo import plots
from crrelu_ext.reference import crrelu

from .cases import NORMAL, identity, logistic, normals

Pair = tuple[Callable[[Tensor], Tensor], Distribution]
SMOOTH: list[Pair] = [
    (torch.tanh, NORMAL),
    (torch.tanh, normals((0.3, -2, 0.5), (0.7, 1, 1))),
    (torch.sigmoid, Normal(0.5, 1.5)),
    (F.softplus, logistic(0.6)),
    (F.logsigmoid, Normal(-1.0, 2.0)),
    (torch.asinh, StudentT(5.0)),
    (torch.atan, normals((0.5, -1, 1), (0.5, 1, 1))),
    (torch.sinh, Normal(0.0, 0.5)),
    (identity, Gumbel(0.0, 1.0)),
    (lambda x: x + 0.5 * torch.sin(x), logistic()),
    (lambda x: -torch.exp(-x), Normal(0.0, 0.7)),
    (lambda x: torch.exp(-x), Normal(0.0, 0.7)),  # decreasing
]
KINKED: list[Pair] = [
    (lambda x: F.leaky_relu(x, 0.3), NORMAL),
    (lambda x: F.leaky_relu(x, 0.3), Normal(0.5, 1.0)),  # D is not 0 at the kink
]
HEAVY: list[Pair] = [(identity, StudentT(2.0))]
PAIRS = SMOOTH + KINKED + HEAVY


@pytest.mark.parametrize(("activation", "density"), PAIRS)
def test_entropy_falls_to_first_order(
    activation: Callable[[Tensor], Tensor], density: Distribution
) -> None:
    """H(f + C D) = H + C dH/dC + O(C²): what is left over a step falls with C."""
    bound = eafo.improve(activation, density).steps[0].step_size * 2
    slope = eafo.entropy_slope(activation, density)
    left_over = []
    for size in (bound / 50, bound / 100):
        (step,) = eafo.improve(activation, density, step_size=size).steps
        assert step.slope == pytest.approx(slope, rel=1e-12)
        fall = step.entropy_after - step.entropy_before
        assert fall < 0
        left_over.append(abs(fall / size - slope))
    assert left_over[0] < 0.1 * abs(slope)
    assert left_over[1] == pytest.approx(left_over[0] / 2, rel=0.1)


@pytest.mark.parametrize(
    ("activation", "density", "fixed_variance"),
    [(*pair, False) for pair in PAIRS] + [(*pair, True) for pair in SMOOTH],
)
def test_improve_lowers_the_entropy_and_stays_monotone(
    activation: Callable[[Tensor], Tensor], density: Distribution, fixed_variance: bool
) -> None:
    result = eafo.improve(activation, density, steps=3, fixed_variance=fixed_variance)
    entropies = [step.entropy_before for step in result.steps] + [
        step.entropy_after for step in result.steps[-1:]
    ]
    assert entropies == sorted(entropies, reverse=True)
    for step, following in zip(result.steps, result.steps[1:], strict=False):
        assert step.entropy_after == following.entropy_before
    if result.steps:
        after = eafo.output_entropy(result.activation, density)
        last = result.steps[-1]
        assert after == pytest.approx(last.entropy_after, abs=last.error + 1e-7)
        assert all(0 < step.margin < 1 and step.error < 1e-5 for step in result.steps)
    for scale in (1, 5, 100):
        x = scale * torch.linspace(-1, 1, 20_001, dtype=torch.float64)
        change = result.activation(x).diff() * activation(x).diff().sign()
        assert (change >= -1e-12 * result.activation(x).abs().max()).all()


def test_fixed_variance_keeps_mean_and_variance() -> None:
    x = NORMAL.sample((200_000,)).double()
    before = torch.tanh(x)
    after = eafo.improve(torch.tanh, NORMAL, steps=2, fixed_variance=True).activation(x)
    assert after.mean().item() == pytest.approx(before.mean().item(), abs=3e-3)
    assert after.var().item() == pytest.approx(before.var().item(), rel=5e-3)


def test_fixed_variances_that_are_refused() -> None:
    for pairs, match in ((KINKED, "D jumps at x = 0"), (HEAVY, "variance is infinite")):
        for activation, density in pairs:
            with pytest.raises(ValueError, match=match):
                eafo.improve(activation, density, fixed_variance=True)


def test_identity_under_a_normal_density_gains_only_by_scale() -> None:
    for density in (NORMAL, Normal(3.0, 0.5)):
        result = eafo.improve(identity, density, fixed_variance=True)
        assert result.steps == ()
        assert result.stopped is not None
        assert result.activation is identity


def test_the_worst_activation_is_stationary() -> None:
    for activation, density in (
        (torch.sigmoid, logistic()),
        (eafo.worst_activation(StudentT(3.0)), StudentT(3.0)),
        (eafo.worst_activation(Laplace(0.0, 1.0)), Laplace(0.0, 1.0)),
        (identity, Uniform(-1.0, 3.0)),
    ):
        result = eafo.improve(activation, density, steps=5)
        assert result.steps == ()
        assert "stationary" in str(result.stopped)


def test_a_later_refusal_ends_the_descent() -> None:
    (first,) = eafo.improve(F.softplus, NORMAL).steps
    assert first.margin == 0.5  # of the C that ends monotonicity
    (half,) = eafo.improve(F.softplus, NORMAL, step_size=first.step_size / 2).steps
    assert half.margin == pytest.approx(0.75)
    assert first.tail_mass == pytest.approx(math.erfc(6.4 / math.sqrt(2)), rel=0.5)
    result = eafo.improve(F.softplus, NORMAL, steps=5, step_size=first.step_size)
    assert len(result.steps) == 1
    assert "step_size" in str(result.stopped)


def refused(match: str, activation: Callable[[Tensor], Tensor], density: Distribution) -> None:
    for function in (eafo.correction, eafo.entropy_slope, eafo.improve):
        with pytest.raises(ValueError, match=match):
            function(activation, density)


def test_directions_that_are_refused() -> None:
    refused("diverges at the bounds", torch.tanh, logistic())
    refused("jumps at x = 0", torch.tanh, Laplace(0.0, 1.0))
    refused("jumps at x = 0", identity, Laplace(0.0, 1.0))
    refused("jumps at x = 0", F.elu, NORMAL)
    refused("jumps at x = 0", F.softsign, NORMAL)
    refused("jumps at x = -1", F.softplus, Uniform(-1.0, 1.0))
    refused("not resolved|not known", lambda x: x**3, NORMAL)
    with pytest.raises(ValueError, match="does not fall along D"):
        eafo.improve(F.leaky_relu, Normal(2.0, 1.0))


def test_tanh_under_laplace_diverges_beside_its_kink() -> None:
    """A density that is Laplace's but for a rounded tip has only the divergence."""
    smooth = normals(*((1 / 60, 0.0, s) for s in torch.linspace(0.3, 8, 60).tolist()))
    refused("diverges at the bounds", lambda x: torch.tanh(x / 2), smooth)


def test_atoms_are_refused() -> None:
    for activation in (torch.relu, F.hardtanh, F.relu6, torch.zeros_like, torch.sign):
        for function in (eafo.output_entropy, eafo.improve, eafo.correction):
            with pytest.raises(ValueError, match=r"flat.*atom"):
                function(activation, NORMAL)
    with pytest.raises(ValueError, match=r"probability of 0\.0[45]"):  # where F.gelu is -0
        eafo.output_entropy(F.gelu, Normal(0.0, 5.0))


@pytest.mark.parametrize(
    ("activation", "error", "match"),
    [
        (lambda x: torch.softmax(x, -1), ValueError, "not elementwise"),
        (lambda x: x.sum(), ValueError, r"activation made shape \(\) of"),
        (lambda x: 3.0, TypeError, "result has type float"),
        ("softplus", TypeError, "activation has type str; allowed is a callable on tensors"),
        (torch.log, ValueError, "inf or NaN at x ="),
        (lambda x: x - x.floor(), ValueError, "jumps against its slope"),
        (lambda x: torch.where(x < 0, x, 2 * x - 5), ValueError, "jumps against its slope"),
        (lambda x: x.abs() + (x > 1), ValueError, "jumps and turns elsewhere"),
        (lambda x: x + 0.1 * torch.tanh(1e6 * (x - 0.3137)), ValueError, "step beside x = 0.31"),
        (lambda x: x + 0.1 * torch.tanh(3e3 * (x - 0.3137)), ValueError, "is not known better"),
    ],
)
def test_what_is_no_activation_is_refused(
    activation: Callable[[Tensor], Tensor], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        eafo.output_entropy(activation, NORMAL)


def test_arguments_that_are_refused() -> None:
    for steps in (0, 1.5, "x"):
        with pytest.raises(ValueError, match=f"steps is {steps!r}; allowed are whole numbers"):
            eafo.improve(torch.tanh, NORMAL, steps=steps)  # type: ignore[arg-type]
    numbers: dict[str, Any] = {"steps": np.int64(1), "step_size": np.float32(1)}
    assert eafo.improve(torch.tanh, NORMAL, **numbers).steps
    for size in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="step_size is"):
            eafo.improve(torch.tanh, NORMAL, step_size=size)
    with pytest.raises(ValueError, match=r"step_size is 1000; allowed is less than 1\.24"):
        eafo.improve(torch.tanh, NORMAL, step_size=1000)
    with pytest.raises(ValueError, match="lower is 1"):
        eafo.worst_activation(NORMAL, 1, -1)
    with pytest.raises(TypeError, match="upper is 'a'; allowed is a number"):
        eafo.worst_activation(NORMAL, 1, "a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="epsilon is nan"):
        eafo.crrelu_inverse_error(float("nan"))
    with pytest.raises(TypeError, match="epsilon is 'a'; allowed is a number"):
        eafo.crrelu_inverse_error("a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"activations has type builtin.*; allowed are a mapping"):
        eafo.compare(torch.tanh, NORMAL)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not monotone"):
        eafo.inverse_correction(F.silu, NORMAL)


@pytest.mark.parametrize("activation", [F.softplus, F.gelu])
def test_the_result_is_an_activation_like_any_other(
    activation: Callable[[Tensor], Tensor],
) -> None:
    improved = eafo.improve(activation, NORMAL, steps=2).activation
    x = torch.linspace(-9, 9, 301, dtype=torch.float64)
    exact = improved(x)
    for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 4e-2), (torch.float16, 6e-3)):
        low = improved(x.to(dtype))
        assert low.dtype == dtype
        assert torch.allclose(low.double(), improved(x.to(dtype).double()), rtol=error, atol=error)
    assert torch.equal(improved(x.reshape(7, 43)), exact.reshape(7, 43))
    assert torch.equal(improved(x[150]), exact[150])
    assert improved(x[:0]).shape == (0,)
    assert improved(torch.tensor(float("nan"))).isnan()
    assert improved(torch.tensor(float("inf"))) == float("inf")
    assert torch.equal(pickle.loads(pickle.dumps(improved))(x), exact)
    points = torch.randn(20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(improved, points)
    assert torch.autograd.gradgradcheck(improved, points)
    each = torch.func.vmap(torch.func.grad(improved))(points)
    (together,) = torch.autograd.grad(improved(points).sum(), points)
    assert torch.allclose(each, together)


@pytest.mark.parametrize(
    "make",
    [
        lambda: eafo.correction(F.softplus, NORMAL),
        lambda: eafo.correction(F.silu, NORMAL),
        lambda: eafo.worst_activation(NORMAL),
        lambda: eafo.improve(F.softplus, NORMAL).activation,
    ],
)
def test_what_comes_back_takes_floats_alone(make: Callable[[], Callable[[Tensor], Tensor]]) -> None:
    function = make()
    with pytest.raises(TypeError, match=r"x has dtype torch.int64; allowed are floating-point"):
        function(torch.arange(-2, 3))
    assert function(torch.tensor([math.nan, 0.5])).isnan().tolist() == [True, False]


EPSILON = nn.Parameter(torch.tensor([0.3]))
MODULES: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
    (nn.SiLU(inplace=True), F.silu),
    (nn.LeakyReLU(0.3, inplace=True), lambda x: F.leaky_relu(x, 0.3)),
    (nn.PReLU(init=0.5), lambda x: F.leaky_relu(x, 0.5)),
    (CRReLU(init=0.3), lambda x: crrelu(x, EPSILON.detach())),
    (DynamicCRReLU(init=0.3), lambda x: crrelu(x, EPSILON.detach())),
    (lambda x: crrelu(x, EPSILON), lambda x: crrelu(x, EPSILON.detach())),
]


@pytest.mark.parametrize(("module", "function"), MODULES)
def test_activations_in_place_or_with_parameters(
    module: Callable[[Tensor], Tensor], function: Callable[[Tensor], Tensor]
) -> None:
    for functional in (eafo.output_entropy, eafo.entropy_slope):
        exact = functional(function, NORMAL)
        assert functional(module, NORMAL) == pytest.approx(exact, abs=1e-7)
    assert eafo.compare([module], NORMAL)[0].slope is not None
    result, other = (eafo.improve(f, NORMAL) for f in (module, function))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = torch.linspace(-3, 3, 33, dtype=dtype)
        expected = other.activation(x.clone())
        assert torch.allclose(result.activation(x), expected, atol=1e-6)
        assert torch.equal(x, torch.linspace(-3, 3, 33, dtype=dtype))
    assert plots.improvement(module, result, NORMAL).axes
    assert plots.comparison({"f": module}, NORMAL).axes


def test_in_inference_mode_comes_what_can_be_trained() -> None:
    module = nn.PReLU(init=0.5)
    with torch.inference_mode():
        functions: list[Callable[[Tensor], Tensor]] = [
            eafo.improve(F.softplus, NORMAL).activation,
            eafo.improve(module, NORMAL).activation,
            eafo.worst_activation(NORMAL),
        ]
    for function in functions:
        x = torch.linspace(-2, 2, 9, requires_grad=True)
        function(x).square().sum().backward()
        assert x.grad is not None


def test_compare() -> None:
    activations = {"softplus": F.softplus, "ReLU": torch.relu, "ELU": F.elu, "line": identity}
    rows = eafo.compare(activations, NORMAL)
    assert [row.name for row in rows] == ["softplus", "ELU", "line", "ReLU"]
    for row in rows[:3]:
        exact = eafo.output_entropy(activations[row.name], NORMAL)
        assert row.entropy == exact
    line, relu = rows[2], rows[3]
    assert line.scale_free_entropy == pytest.approx(1.41893853, abs=1e-6)
    assert line.variance == pytest.approx(1, abs=1e-6)
    assert line.slope == pytest.approx(-0.14104740, abs=1e-6)
    assert rows[1].slope is None
    assert "D jumps" in str(rows[1].refusal)
    (heavy,) = eafo.compare([identity], StudentT(2.0))
    assert len(eafo.compare([torch.nn.Softplus(), torch.nn.Softplus()], NORMAL)) == 2
    assert heavy.variance == float("inf")
    assert heavy.scale_free_entropy is None
    assert relu.entropy is None
    assert "atom" in str(relu.refusal)
    assert {row.name for row in eafo.compare([torch.tanh, identity], NORMAL)} == {
        "tanh",
        "identity",
    }
