"""crrelu_at, CRReLU with its bump at a place: values, gradients, transforms, arguments."""

# mypy: disable-error-code="attr-defined"

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.func import hessian, vmap
from torch.testing import assert_close

from crrelu_ext import crrelu, crrelu_at, reference

from .oracle import Array, Formula, Terms, exact_numbers, ulp
from .test_accuracy import every_number, float32_sample, float64_sample
from .test_distributed import in_processes
from .tolerances import TOLERANCES, assert_sums

PLACES = [(0.0, 1.0), (0.7, 0.3), (-2.5, 1.9)]


def place_of(location: float, scale: float, dtype: torch.dtype) -> Tensor:
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.tensor([[location], [scale]], dtype=kind)


def assert_near(actual: Tensor, terms: Terms, moves: Array, tolerance: float) -> None:
    """Within `tolerance` ulps of the larger term, and what two roundings of u make of it.

    Args:
        moves: by how much the exact value moves with u, in units of u's own size.
    """
    arithmetic = torch.float64 if actual.dtype == torch.float64 else torch.float32
    larger = np.maximum(np.abs(terms.first), np.abs(terms.second)).astype(float)
    bound = tolerance * ulp(larger, actual.dtype)
    bound += 2 * torch.finfo(arithmetic).eps * np.abs(moves).astype(float)
    error = np.abs(exact_numbers(actual) - (terms.first + terms.second)).astype(float)
    assert (error <= bound).all()


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("epsilon", [0.01, -0.5, -1.69])
def test_accuracy(
    device: str, dtype: torch.dtype, epsilon: float, place: tuple[float, float]
) -> None:
    x = {
        torch.float32: lambda: float32_sample(2**16),
        torch.float64: lambda: float64_sample(2000),
    }.get(dtype, lambda: every_number(dtype))()
    x = x[x.isfinite()].to(device).requires_grad_()
    where = place_of(*place, dtype)
    e = where.new_tensor([epsilon]).requires_grad_()
    output = crrelu_at(x, e.to(device), where.to(device))
    (slope,) = torch.autograd.grad(output.sum(), x)
    location, scale = (exact_numbers(number) for number in where)
    u = (exact_numbers(x) - location) / scale
    height = exact_numbers(e) * scale
    formula = Formula(u)
    near = np.clip(u, -100, 100)
    (_, bump), (_, bump_slope) = formula.value(height), formula.input_derivative(height / scale)
    gaussian = formula.epsilon_derivative().second / np.where(near == 0, 1, near)
    step = (exact_numbers(x) > 0).astype(float)
    tolerance = TOLERANCES[dtype]
    assert_near(
        output,
        Terms(np.maximum(exact_numbers(x), 0), bump),
        height * near * (1 - near**2) * gaussian,
        tolerance.value + 1,
    )
    assert_near(
        slope,
        Terms(step, bump_slope),
        height / scale * near**2 * (near**2 - 3) * gaussian,
        tolerance.derivative + 2,
    )


def test_at_0_in_units_of_1_it_is_crrelu(device: str, dtype: torch.dtype) -> None:
    x = (torch.randn(1000, device=device) * 3).to(dtype).requires_grad_()
    epsilon = torch.tensor([-0.4], device=device, requires_grad=True)
    place = torch.tensor([[0.0], [1.0]], device=device)
    ours, plain = crrelu_at(x, epsilon, place), crrelu(x, epsilon)
    assert torch.equal(ours, plain)
    grad_output = torch.randn_like(x)
    for a, b in zip(
        torch.autograd.grad(ours, (x, epsilon), grad_output),
        torch.autograd.grad(plain, (x, epsilon), grad_output),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("epsilon", "scale"), [(20.0, 0.1), (5.0, 0.25), (3e4, 1e-4), (1.5, 1e30), (-0.5, 1e-30)]
)
def test_narrow_and_wide(device: str, dtype: torch.dtype, epsilon: float, scale: float) -> None:
    """The slope is ReLU's and epsilon (1 - u²) exp(-u²/2), and has the same bits beside a number
    that lies far from the place."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    e = torch.tensor([epsilon], dtype=wide, device=device)
    where = place_of(0, scale, wide).to(device)
    u = torch.linspace(-9, 9, 401, dtype=torch.float64)
    x = (u * where[1].item()).to(dtype).double()
    if not torch.isfinite(x).all():
        pytest.skip(f"{dtype} has no such numbers")
    beside = torch.stack([x, torch.full_like(x, 60 * where[1].item())], dim=1).flatten()
    slopes = []
    for numbers in (x, beside):
        leaf = numbers.to(device, dtype, copy=True).requires_grad_()
        crrelu_at(leaf, e, where).sum().backward()
        assert leaf.grad is not None
        slopes.append(leaf.grad)
    assert torch.equal(slopes[0], slopes[1][::2])
    v = (x / where[1].item()).numpy()
    bump = e.item() * (1 - v**2) * np.exp(-(v**2) / 2)
    expected = torch.from_numpy((x.numpy() > 0) + bump).to(device)
    if dtype in (torch.float32, torch.float64):
        larger = torch.from_numpy(np.maximum(np.abs(bump), x.numpy() > 0)).to(device)
        assert ((slopes[0] - expected).abs() <= 2e-4 * larger).all()


def test_limits(device: str, dtype: torch.dtype) -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=dtype, device=device)
    x.requires_grad_()
    place = torch.tensor([[-3.0], [5.0]], device=device)
    for function in (crrelu_at, reference.crrelu_at):
        output = function(x, torch.tensor([0.3], device=device), place)
        (slope,) = torch.autograd.grad(output.sum(), x)
        assert output[:2].tolist() == [torch.inf, 0]
        assert slope[:2].tolist() == [1, 0]
        assert output[2].isnan()
        assert slope[2].isnan()


@pytest.mark.parametrize(
    ("shape", "channel_dim", "channels_last"),
    [
        ((3, 5), 1, False),
        ((40, 7), -1, False),
        ((5, 300), 0, False),  # runs of one channel
        ((2, 4, 6, 7), 1, False),
        ((2, 4, 6, 7), 1, True),
        ((0, 3), 1, False),
    ],
)
def test_each_channel_has_its_place(
    device: str, dtype: torch.dtype, shape: tuple[int, ...], channel_dim: int, channels_last: bool
) -> None:
    """As one call for two channels like this one, to the last bit; the sums within their bound."""
    x = torch.randn(shape, device=device).to(dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    channels = shape[channel_dim]
    epsilon = torch.linspace(-1, 1, channels, device=device)
    place = torch.stack([torch.linspace(-2, 2, channels), torch.linspace(0.2, 3, channels)])
    place = place.to(device)
    grad_output = torch.randn_like(x)
    leaves = x.requires_grad_(), epsilon.requires_grad_()
    output = crrelu_at(x, epsilon, place, channel_dim=channel_dim)
    assert output.stride() == x.stride()
    grads = torch.autograd.grad(output, leaves, grad_output)
    for c in range(channels):
        one = x.detach().select(channel_dim, c).contiguous()
        two = torch.stack([one, one], dim=-1).requires_grad_()
        e = epsilon.detach()[c].repeat(2).requires_grad_()
        alone = crrelu_at(two, e, place[:, c : c + 1].repeat(1, 2), channel_dim=-1)
        assert torch.equal(output.select(channel_dim, c), alone[..., 0])
        grad_output_of_it = grad_output.select(channel_dim, c)
        grad, _ = torch.autograd.grad(
            alone, (two, e), torch.stack([grad_output_of_it, grad_output_of_it], dim=-1)
        )
        assert torch.equal(grads[0].select(channel_dim, c), grad[..., 0])
        if one.numel():
            location, scale = (exact_numbers(number) for number in place[:, c : c + 1])
            u = (exact_numbers(one) - location) / scale
            terms = exact_numbers(grad_output_of_it) * Formula(u).epsilon_derivative().second
            assert_sums(grads[1][c : c + 1], (terms * scale).reshape(-1, 1), dtype)


def leaves(shape: tuple[int, ...], channels: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(shape, dtype=torch.float64).uniform_(0.1, 2.5, generator=generator)
    x *= torch.empty_like(x).bernoulli_(0.5, generator=generator) * 2 - 1  # away from the kink
    epsilon = torch.linspace(-0.7, 0.4, channels, dtype=torch.float64)
    place = torch.stack([torch.linspace(-1, 0.5, channels), torch.linspace(0.5, 2, channels)])
    return (
        x.to(device).requires_grad_(),
        epsilon.to(device).requires_grad_(),
        place.double().to(device),
    )


@pytest.mark.parametrize(
    ("shape", "channel_dim"), [((), None), ((5,), 0), ((2, 3), 1), ((3, 4, 2), -1), ((0, 3), 1)]
)
def test_derivatives(device: str, shape: tuple[int, ...], channel_dim: int | None) -> None:
    channels = 1 if channel_dim is None else shape[channel_dim]
    x, epsilon, place = leaves(shape, channels, device)
    for function in (crrelu_at, reference.crrelu_at):

        def bound(x: Tensor, e: Tensor, f: Any = function) -> Tensor:
            return f(x, e, place, channel_dim=channel_dim or 0)

        assert gradcheck(bound, (x, epsilon), check_forward_ad=True)
        assert gradgradcheck(bound, (x, epsilon))


def test_transforms(device: str) -> None:
    x, epsilon, place = leaves((4, 3), 3, device)
    x, epsilon = x.detach(), epsilon.detach()
    curvature = hessian(lambda x: crrelu_at(x, epsilon, place).square().sum())(x)
    expected = hessian(lambda x: reference.crrelu_at(x, epsilon, place).square().sum())(x)
    assert_close(curvature, expected)
    many = torch.stack([epsilon, -epsilon])
    assert_close(
        vmap(lambda e: crrelu_at(x, e, place))(many),
        torch.stack([crrelu_at(x, e, place) for e in many]),
    )
    assert_close(
        vmap(lambda x: crrelu_at(x, epsilon, place, channel_dim=0))(x), crrelu_at(x, epsilon, place)
    )


def test_what_is_wanted_and_saved(device: str) -> None:
    x, grad_output = torch.randn(300, device=device), torch.randn(300, device=device)
    epsilon, place = torch.tensor([0.4], device=device), torch.tensor([[0.5], [2.0]], device=device)
    backward = torch.ops.crrelu_ext.crrelu_at_backward
    both = backward(grad_output, x, epsilon, place, 1, [True, True])
    assert torch.equal(backward(grad_output, x, epsilon, place, 1, [True, False])[0], both[0])
    assert torch.equal(backward(grad_output, x, epsilon, place, 1, [False, True])[1], both[1])
    saved: list[Tensor] = []
    x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t), lambda t: t):
        crrelu_at(x, epsilon, place)
    assert [t.data_ptr() for t in saved] == [t.data_ptr() for t in (x, epsilon, place)]


def test_opcheck(device: str) -> None:
    x, epsilon, place = leaves((4, 3), 3, device)
    torch.library.opcheck(torch.ops.crrelu_ext.crrelu_at.default, (x, epsilon, place, 1))
    torch.library.opcheck(
        torch.ops.crrelu_ext.crrelu_at_backward.default,
        (x.detach(), x, epsilon, place, 1, [True, True]),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_compiled(device: str) -> None:
    x, epsilon, place = leaves((4, 3), 3, device)
    compiled = torch.compile(crrelu_at, fullgraph=True, backend="aot_eager")
    output, expected = compiled(x, epsilon, place), crrelu_at(x, epsilon, place)
    assert_close(output, expected)
    for a, b in zip(
        torch.autograd.grad(output.square().sum(), (x, epsilon)),
        torch.autograd.grad(expected.square().sum(), (x, epsilon)),
        strict=True,
    ):
        assert_close(a, b)


def test_nested() -> None:
    parts = [torch.randn(n, 3) for n in (2, 5)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    epsilon, place = torch.tensor([0.1, 0.2, 0.3]), torch.rand(2, 3) + 0.5
    output = crrelu_at(nested, epsilon, place, channel_dim=-1)
    for part, expected in zip(output.unbind(), parts, strict=True):
        assert_close(part, crrelu_at(expected, epsilon, place))


def sharded(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,))
    x, epsilon, place = leaves((5, 7), 7, "cpu")
    expected = crrelu_at(x, epsilon, place)
    grad_output = torch.randn_like(expected)
    grads = torch.autograd.grad(expected, (x, epsilon), grad_output)
    for placement in (Shard(0), Shard(1), Replicate()):
        whole = [Replicate()]
        given = [
            distribute_tensor(t.detach(), mesh, p).requires_grad_(t.requires_grad)
            for t, p in ((x, [placement]), (epsilon, whole), (place, whole))
        ]
        output = crrelu_at(*given)
        assert_close(output.full_tensor(), expected.detach())
        distributed = distribute_tensor(grad_output, mesh, output.placements)
        for grad, exact in zip(
            torch.autograd.grad(output, given[:2], distributed), grads, strict=True
        ):
            assert_close(grad.full_tensor(), exact)


def test_sharded(tmp_path: Path) -> None:
    in_processes(tmp_path, sharded)


BAD: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("input is no tensor", TypeError, "input has type float", {"input": 1.0}),
    ("epsilon is no tensor", TypeError, "epsilon has type float", {"epsilon": 0.1}),
    ("place is no tensor", TypeError, "place has type list", {"place": [0.0, 1.0]}),
    ("integers", TypeError, "input has dtype", {"input": torch.ones(2, 3, dtype=torch.int)}),
    ("place of 16 bits", TypeError, "place has dtype", {"place": torch.ones(2, 1).half()}),
    ("place of another shape", ValueError, "place has shape", {"place": torch.ones(2)}),
    ("place for others", ValueError, r"allowed is \(2, 1\)", {"place": torch.ones(2, 3)}),
    ("place elsewhere", RuntimeError, "place is on", {"place": torch.ones(2, 1, device="meta")}),
    ("sparse place", ValueError, "place has layout", {"place": torch.ones(2, 1).to_sparse()}),
    (
        "a place to learn",
        RuntimeError,
        "place requires grad",
        {"place": torch.ones(2, 1, requires_grad=True)},
    ),
    (
        "no such dim",
        IndexError,
        "channel_dim is 2",
        {"epsilon": torch.zeros(3), "place": torch.ones(2, 3), "channel_dim": 2},
    ),
]


@pytest.mark.parametrize(
    ("error", "message", "changed"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
def test_bad_arguments(error: type[Exception], message: str, changed: dict[str, Any]) -> None:
    given = {"input": torch.ones(2, 3), "epsilon": torch.zeros(1), "place": torch.ones(2, 1)}
    for function in (crrelu_at, reference.crrelu_at):
        with pytest.raises(error, match=message):
            function(**given | changed)
