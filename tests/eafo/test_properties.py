"""Whatever the parameters: a result within its stated error, or a refusal, and never a NaN."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Distribution, Normal, StudentT
from torch.nn import functional as F

from crrelu_ext import eafo

from .cases import identity, logistic, normals

means = st.floats(-5, 5)
scales = st.floats(0.05, 20)
densities = st.one_of(
    st.builds(Normal, means, scales),
    st.builds(StudentT, st.floats(1, 30), means, scales),
    st.builds(logistic, scales),
    st.builds(
        lambda w, m, s: normals((w, 0.0, 1.0), (1 - w, m, s)), st.floats(0.05, 0.95), means, scales
    ),
)
activations = st.sampled_from(
    [identity, F.softplus, torch.tanh, torch.sigmoid, torch.asinh, F.leaky_relu, F.silu, F.gelu]
)


def test_a_result_or_a_refusal() -> None:
    had_results = []

    @settings(max_examples=40)
    @given(activation=activations, density=densities, functions=st.sampled_from([None, 3, 8]))
    def of_one(
        activation: Callable[[Tensor], Tensor], density: Distribution, functions: int | None
    ) -> None:
        had_results.append(has_result(activation, density, functions))

    of_one()
    assert sum(had_results) > len(had_results) / 3


def has_result(
    activation: Callable[[Tensor], Tensor], density: Distribution, functions: int | None
) -> bool:
    """Whether it is not refused; then it is right."""
    try:
        entropy = eafo.output_entropy(activation, density)
        result = eafo.improve(activation, density, functions=functions)
    except ValueError:
        return False
    assert math.isfinite(entropy)
    for step in result.steps:
        assert step.entropy_before == pytest.approx(entropy, abs=1e-12)
        assert step.entropy_after < entropy
        assert 0 <= step.error <= 1e-5
        after = eafo.output_entropy(result.activation, density)
        assert after == pytest.approx(step.entropy_after, abs=2e-5)
    assert result.activation(torch.linspace(-50, 50, 1001)).isfinite().all()
    return True


@settings(max_examples=30)
@given(mean=means, scale=scales, factor=st.floats(0.01, 100), shift=means)
def test_entropy_of_lines(mean: float, scale: float, factor: float, shift: float) -> None:
    exact = 0.5 * math.log(2 * math.pi * math.e) + math.log(scale) + math.log(factor)
    assert eafo.output_entropy(lambda x: factor * x + shift, Normal(mean, scale)) == pytest.approx(
        exact, abs=1e-6
    )


@settings(max_examples=20)
@given(freedom=st.floats(1, 30), location=means, scale=scales)
def test_slope_of_the_identity(freedom: float, location: float, scale: float) -> None:
    """-∫ p'², which scales with the inverse cube."""
    unit = eafo.entropy_slope(identity, StudentT(freedom))
    actual = eafo.entropy_slope(identity, StudentT(freedom, location, scale))
    assert actual == pytest.approx(unit / scale**3, rel=1e-4)
