"""crrelu_glu, f(gate) · up: values, gradients, arguments. What it shares with crrelu (transforms,
compilation, sharding) is tested beside it, in test_opinfo.py, test_compile.py, test_distributed.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

import crrelu_ext
from crrelu_ext import crrelu, crrelu_glu, reference

from .test_epsilon_gradient import THREADS

ULP = {torch.float32: 2**-23, torch.float64: 2**-52, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def exact(gate: Tensor, up: Tensor, epsilon: Tensor, grad_output: Tensor) -> tuple[Tensor, ...]:
    """The value and the three gradients in float64, and what bounds each one's rounding."""
    x, u, e, g = (t.double() for t in (gate, up, epsilon, grad_output))
    gaussian = torch.exp(-x * x / 2)
    value, bump = x.clamp(min=0) + e * x * gaussian, x * gaussian
    slope = (x > 0).double() + e * (1 - x * x) * gaussian
    sizes = x.clamp(min=0) + (e * bump).abs(), (x > 0) + (e * (1 - x * x) * gaussian).abs()
    return (
        value * u,
        sizes[0] * u.abs(),
        g * u * slope,
        (g * u).abs() * sizes[1],
        g * value,
        g.abs() * sizes[0],
        (g * u * bump).sum(),
        (g * u * bump).abs().sum(),
    )


@pytest.mark.parametrize("numel", [1, 7, 64, 1000, 40_000])
@pytest.mark.parametrize("e", [0.01, -0.5, -1.69, 1.0])
def test_accuracy(device: str, dtype: torch.dtype, numel: int, e: float) -> None:
    gate, up, grad_output = (torch.randn(numel, device=device).to(dtype) for _ in range(3))
    gate *= 2
    epsilon = torch.tensor([e], device=device, dtype=torch.float64).to(
        dtype if dtype == torch.float64 else torch.float32
    )
    leaves = [t.requires_grad_() for t in (gate, up, epsilon)]
    output = crrelu_glu(gate, up, epsilon)
    grads = torch.autograd.grad(output, leaves, grad_output)
    value, value_size, for_gate, gate_size, for_up, up_size, total, total_size = (
        t.detach() for t in exact(gate, up, epsilon, grad_output)
    )
    ulp, tiny = ULP[dtype], torch.finfo(dtype).smallest_normal * ULP[dtype]
    for actual, expected, size in (
        (output, value, value_size),
        (grads[0], for_gate, gate_size),
        (grads[1], for_up, up_size),
    ):
        error = (actual.detach().double() - expected).abs()
        assert (error <= 4 * ulp * size + 2 * tiny).all()
    tolerance = 1e-5 if dtype in (torch.bfloat16, torch.float16) else 1e-6
    assert abs(grads[2].item() - total.item()) <= tolerance * total_size.item()


@pytest.mark.parametrize(
    ("shape", "channel_dim"),
    [((), None), ((5,), 0), ((2, 3), 1), ((3, 4, 2), -1), ((2, 3, 2, 2), 1), ((0, 3), 1)],
)
def test_derivatives(device: str, shape: tuple[int, ...], channel_dim: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    gate = torch.empty(shape, dtype=torch.float64).uniform_(0.1, 2.5, generator=generator)
    gate *= torch.empty_like(gate).bernoulli_(0.5, generator=generator) * 2 - 1
    up = torch.randn(shape, dtype=torch.float64, generator=generator)
    channels = 1 if channel_dim is None else shape[channel_dim]
    epsilon = torch.linspace(-0.7, 0.4, channels, dtype=torch.float64)
    leaves = [t.to(device).requires_grad_() for t in (gate, up, epsilon)]
    for function in (crrelu_glu, reference.crrelu_glu):

        def bound(*t: Tensor, f: Any = function) -> Tensor:
            return f(*t, channel_dim=channel_dim or 0)

        assert gradcheck(bound, leaves, check_forward_ad=True)
        assert gradgradcheck(bound, leaves)


def test_the_same_as_its_parts(device: str, dtype: torch.dtype) -> None:
    """To the last bit where the arithmetic is of that type; else the parts are rounded twice."""
    gate, up = (torch.randn(3, 50, device=device).to(dtype) for _ in range(2))
    epsilon = torch.tensor([0.3], device=device)
    output = crrelu_glu(gate, up, epsilon)
    scalar = device == "cpu" and crrelu_ext.build_info()["isa"] == "scalar"
    if dtype == torch.float64 or (dtype == torch.float32 and not scalar):
        assert torch.equal(output, crrelu(gate, epsilon) * up)
    else:
        assert_close(output, crrelu(gate, epsilon) * up)
    assert_close(output, reference.crrelu_glu(gate, up, epsilon))


def test_strides(device: str) -> None:
    """Dense of any permutation, with gaps, and gate and up of different strides."""
    epsilon = torch.linspace(-1, 1, 3, device=device).requires_grad_()
    plain = [torch.randn(2, 3, 4, 5, device=device) for _ in range(3)]
    permuted = [x.to(memory_format=torch.channels_last) for x in plain]
    gaps = [torch.stack([x, x], -1)[..., 0] for x in plain]
    expected = None
    for gate, up, grad in (plain, permuted, gaps, [plain[0], permuted[1], gaps[2]]):
        gate, up = (x.detach().requires_grad_() for x in (gate, up))
        output = crrelu_glu(gate, up, epsilon)
        results = (output, *torch.autograd.grad(output, (gate, up, epsilon), grad))
        expected = expected or results
        for actual, exact in zip(results, expected, strict=True):
            assert_close(actual, exact)
    assert crrelu_glu(permuted[0], permuted[1], epsilon).is_contiguous(
        memory_format=torch.channels_last
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_halves_of_one_projection(device: str, dtype: torch.dtype) -> None:
    """Gate and up as `chunk` gives them, whose rows have gaps."""
    both = torch.randn(40, 600, device=device, dtype=dtype).requires_grad_()
    epsilon = torch.tensor([-0.7], device=device).requires_grad_()
    grad_output = torch.randn(40, 300, device=device, dtype=dtype)
    results = []
    for gate, up in (both.chunk(2, -1), [half.contiguous() for half in both.chunk(2, -1)]):
        output = crrelu_glu(gate, up, epsilon)
        results.append((output, *torch.autograd.grad(output, (both, epsilon), grad_output)))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][0].is_contiguous()


def test_frozen(device: str) -> None:
    """Each gradient has the same bits, whichever others are wanted."""
    tensors = [torch.randn(300, device=device), torch.randn(300, device=device)]
    tensors.append(torch.tensor([0.4], device=device))
    grad_output = torch.randn(300, device=device)
    backward = torch.ops.crrelu_ext.crrelu_glu_backward
    expected = backward(grad_output, *tensors, 1, [True] * 3)
    for wanted in range(8):
        mask = [bool(wanted >> i & 1) for i in range(3)]
        grads = backward(grad_output, *tensors, 1, mask)
        for grad, exact, want in zip(grads, expected, mask, strict=True):
            assert torch.equal(grad, exact) if want else grad is None


@pytest.mark.parametrize(
    ("shape", "channel_dim"),
    [
        ((7,), None),
        ((50_000,), None),
        ((3, 5, 7, 11), None),
        ((3, 17, 129), 1),
        ((2, 64, 49), 1),
        ((1000, 17), -1),
        ((3, 5000), -1),
        ((5000, 7), 0),
    ],
)
def test_threads(
    threads: None, device: str, dtype: torch.dtype, shape: tuple[int, ...], channel_dim: int | None
) -> None:
    """All gradients have the same bits for any number of threads."""
    tensors = [torch.randn(shape, device=device).to(dtype) for _ in range(3)]
    channels = 1 if channel_dim is None else shape[channel_dim]
    epsilon = torch.linspace(-1.7, 0.5, channels, device=device).to(
        dtype if dtype == torch.float64 else torch.float32
    )
    backward, results = torch.ops.crrelu_ext.crrelu_glu_backward, []
    for count in THREADS:
        torch.set_num_threads(count)
        results.append(backward(*tensors, epsilon, channel_dim or 0, [True] * 3))
    for grads in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads, results[0], strict=True))


def test_what_is_saved(device: str) -> None:
    saved: list[Tensor] = []
    gate, up = (torch.randn(10, 10, device=device, requires_grad=True) for _ in range(2))
    epsilon = torch.tensor([0.4], device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t), lambda t: t):
        crrelu_glu(gate, up, epsilon)
    assert [t.data_ptr() for t in saved] == [t.data_ptr() for t in (gate, up, epsilon)]


BAD: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("gate is no tensor", TypeError, "gate has type float", {"gate": 1.0}),
    ("up is no tensor", TypeError, "up has type list", {"up": [1.0]}),
    ("epsilon is no tensor", TypeError, "epsilon has type float", {"epsilon": 0.1}),
    ("gate of integers", TypeError, "gate has dtype", {"gate": torch.ones(2, 3, dtype=torch.int)}),
    ("up of another dtype", TypeError, "up has dtype", {"up": torch.ones(2, 3).double()}),
    ("up of another shape", ValueError, "up has shape", {"up": torch.ones(3)}),
    ("up elsewhere", RuntimeError, "up is on meta", {"up": torch.ones(2, 3, device="meta")}),
    ("sparse up", ValueError, "up has layout", {"up": torch.ones(2, 3).to_sparse()}),
    ("epsilon of two", ValueError, "epsilon has 2 values", {"epsilon": torch.zeros(2)}),
    ("no such dim", IndexError, "channel_dim is 2", {"epsilon": torch.zeros(3), "channel_dim": 2}),
    ("channel_dim is no int", TypeError, "channel_dim has type str", {"channel_dim": "1"}),
]


@pytest.mark.parametrize(
    ("error", "message", "changed"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
def test_bad_arguments(error: type[Exception], message: str, changed: dict[str, Any]) -> None:
    given = {"gate": torch.ones(2, 3), "up": torch.ones(2, 3), "epsilon": torch.zeros(1)} | changed
    for function in (crrelu_ext.crrelu_glu, reference.crrelu_glu):
        with pytest.raises(error, match=message):
            function(**given)
