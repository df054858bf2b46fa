"""What autograd makes of CRReLU: derivatives of every order and mode, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import crrelu_ext
from crrelu_ext import reference

from .oracle import Formula, Terms, error_in_ulps, exact_numbers
from .tolerances import TOLERANCES, assert_sums

# Within torch itself, in forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

CASES = [  # shape, channel_dim with an epsilon per channel, or None with one for all
    ((), None),
    ((1,), None),
    ((5,), None),
    ((5,), 0),
    ((2, 3), 1),
    ((2, 3), 0),
    ((2, 1), 1),
    ((3, 4, 2), 1),
    ((3, 4, 2), -1),
    ((2, 3, 2, 2), -3),
    ((2, 2, 2, 2, 3), 4),
    ((0,), None),
    ((0, 3), 1),
    ((3, 150), 0),
]
IMPLEMENTATIONS = pytest.mark.parametrize(
    "function", [crrelu_ext.crrelu, reference.crrelu], ids=["native", "reference"]
)


def arguments(
    shape: tuple[int, ...], channel_dim: int | None, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """float64, that require gradients; the input's elements are off the kink at 0."""
    generator = torch.Generator().manual_seed(0)
    input = torch.empty(shape, dtype=torch.float64).uniform_(0.1, 2.5, generator=generator)
    input *= torch.empty_like(input).bernoulli_(0.5, generator=generator) * 2 - 1
    channels = 1 if channel_dim is None else shape[channel_dim]
    epsilon = torch.linspace(-0.7, 0.4, channels, dtype=torch.float64)
    return input.to(device).requires_grad_(), epsilon.to(device).requires_grad_()


def bound(function: Callable[..., Tensor], channel_dim: int | None) -> Callable[..., Tensor]:
    return lambda input, epsilon: function(input, epsilon, channel_dim=channel_dim or 0)


@IMPLEMENTATIONS
@pytest.mark.parametrize(("shape", "channel_dim"), CASES)
def test_gradcheck(
    device: str, function: Callable[..., Tensor], shape: tuple[int, ...], channel_dim: int | None
) -> None:
    inputs = arguments(shape, channel_dim, device)
    assert gradcheck(bound(function, channel_dim), inputs)


@IMPLEMENTATIONS
@pytest.mark.parametrize(("shape", "channel_dim"), CASES[:-3])
def test_forward_mode(
    device: str, function: Callable[..., Tensor], shape: tuple[int, ...], channel_dim: int | None
) -> None:
    assert gradcheck(
        bound(function, channel_dim),
        arguments(shape, channel_dim, device),
        check_forward_ad=True,
        check_batched_forward_grad=True,
        check_batched_grad=True,
    )


@IMPLEMENTATIONS
@pytest.mark.parametrize(("shape", "channel_dim"), CASES[:-3])
def test_second_derivatives(
    device: str, function: Callable[..., Tensor], shape: tuple[int, ...], channel_dim: int | None
) -> None:
    assert gradgradcheck(
        bound(function, channel_dim),
        arguments(shape, channel_dim, device),
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_batched_grad=True,
    )


@pytest.mark.parametrize(("shape", "channel_dim"), [((3, 4, 2), None), ((3, 4, 2), 1)])
@pytest.mark.parametrize("wanted", ["input", "epsilon"])
def test_second_derivatives_by_one_alone(
    device: str, shape: tuple[int, ...], channel_dim: int | None, wanted: str
) -> None:
    input, epsilon = arguments(shape, channel_dim, device)
    if wanted == "input":
        constant = epsilon.detach()
        assert gradgradcheck(lambda x: bound(crrelu_ext.crrelu, channel_dim)(x, constant), input)
    else:
        constant = input.detach()
        # Linear in epsilon: its second derivative is that through grad_output alone.
        assert gradgradcheck(lambda e: bound(crrelu_ext.crrelu, channel_dim)(constant, e), epsilon)


def test_second_derivatives_are_those_of_the_formula(device: str) -> None:
    """f'' = ε x (x² - 3) exp(-x²/2) and ∂²f/∂x∂ε = (1 - x²) exp(-x²/2), at the kink too."""
    input = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], dtype=torch.float64, device=device)
    epsilon = torch.tensor([-0.6], dtype=torch.float64, device=device, requires_grad=True)
    input.requires_grad_()
    (slope,) = torch.autograd.grad(
        crrelu_ext.crrelu(input, epsilon).sum(), input, create_graph=True
    )
    curvature, mixed = torch.autograd.grad(slope.sum(), (input, epsilon))
    x, gaussian = input.detach(), torch.exp(-(input.detach() ** 2) / 2)
    torch.testing.assert_close(curvature, -0.6 * x * (x * x - 3) * gaussian)
    torch.testing.assert_close(mixed, ((1 - x * x) * gaussian).sum()[None])


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(("shape", "channel_dim"), [((40,), None), ((6, 5), 1), ((5, 200), 0)])
def test_frozen(
    device: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    channel_dim: int | None,
    create_graph: bool,
) -> None:
    """A gradient has the same bits, whether the other is wanted or not."""
    both = [t.detach().to(dtype).requires_grad_() for t in arguments(shape, channel_dim, device)]
    function = bound(crrelu_ext.crrelu, channel_dim)
    expected = torch.autograd.grad(function(*both).sum(), both, create_graph=create_graph)
    for kept in range(2):
        some = [t.detach().requires_grad_(i == kept) for i, t in enumerate(both)]
        output = function(*some)
        (gradient,) = torch.autograd.grad(output.sum(), some[kept], create_graph=create_graph)
        assert torch.equal(gradient, expected[kept])
    neither = [t.detach() for t in both]
    assert not function(*neither).requires_grad
    with torch.no_grad():
        assert not function(*both).requires_grad


def test_undefined_grad_output(device: str) -> None:
    """Where a graph hands no gradient back, none comes out, and nothing fails."""
    input, epsilon = arguments((4, 3), 1, device)
    output = crrelu_ext.crrelu(input, epsilon)
    assert output.grad_fn is not None
    assert output.grad_fn(None) == (None, None)  # type: ignore[operator]

    class Blocked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return None

    Blocked.apply(output).sum().backward()
    assert input.grad is None or not input.grad.any()
    assert epsilon.grad is None or not epsilon.grad.any()


def test_undefined_gradients_of_the_backward(device: str) -> None:
    """Second derivatives of one of the two gradients only."""
    input, epsilon = arguments((4, 3), 1, device)
    for index in range(2):
        first = torch.autograd.grad(
            crrelu_ext.crrelu(input, epsilon).pow(2).sum(), (input, epsilon), create_graph=True
        )
        expected_first = torch.autograd.grad(
            reference.crrelu(input, epsilon).pow(2).sum(), (input, epsilon), create_graph=True
        )
        second = torch.autograd.grad(first[index].sum(), (input, epsilon))
        expected = torch.autograd.grad(expected_first[index].sum(), (input, epsilon))
        torch.testing.assert_close(second, expected)


def test_graph_kept_or_freed(device: str) -> None:
    input, epsilon = arguments((4, 3), 1, device)
    output = crrelu_ext.crrelu(input, epsilon)
    grad_output = torch.ones_like(output)
    first = torch.autograd.grad(output, (input, epsilon), grad_output, retain_graph=True)
    second = torch.autograd.grad(output, (input, epsilon), grad_output)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(output, (input, epsilon), grad_output)


def test_gradients_accumulate(device: str) -> None:
    input, epsilon = arguments((4, 3), 1, device)
    for _ in range(3):
        crrelu_ext.crrelu(input, epsilon).sum().backward()
    once = torch.autograd.grad(crrelu_ext.crrelu(input, epsilon).sum(), (input, epsilon))
    torch.testing.assert_close((input.grad, epsilon.grad), tuple(3 * g for g in once))


def test_one_epsilon_in_two_layers(device: str) -> None:
    input, epsilon = arguments((4, 3), None, device)
    assert gradcheck(
        lambda x, e: crrelu_ext.crrelu(2 * crrelu_ext.crrelu(x, e), e), (input, epsilon)
    )


GRAD_OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded": lambda like: torch.full_like(like[0, 0, 0], 2).expand_as(like),
    "expanded_row": lambda like: torch.randn_like(like[:1]).expand_as(like),
    "transposed": lambda like: torch.randn_like(like.transpose(0, 1)).transpose(0, 1).contiguous(),
    "other_order": lambda like: torch.randn_like(like.permute(2, 0, 1)).clone().permute(1, 2, 0),
    "with_gaps": lambda like: torch.randn_like(torch.cat([like, like], 2))[:, :, ::2],
    "offset": lambda like: torch.randn_like(torch.cat([like[:1], like]))[1:],
    "negated_view": lambda like: torch._neg_view(torch.randn_like(like)),
}


@pytest.mark.parametrize("layout", GRAD_OUTPUTS)
@pytest.mark.parametrize("channel_dim", [None, 1, 2])
def test_grad_output_of_any_strides(
    device: str, dtype: torch.dtype, layout: str, channel_dim: int | None
) -> None:
    input, epsilon = arguments((5, 7, 6), channel_dim, device)
    input, epsilon = input.detach().to(dtype), epsilon.detach().to(dtype)
    grad_output = GRAD_OUTPUTS[layout](input)
    input.requires_grad_()
    epsilon.requires_grad_()
    output = bound(crrelu_ext.crrelu, channel_dim)(input, epsilon)
    grad_input, grad_epsilon = torch.autograd.grad(output, (input, epsilon), grad_output)

    formula, grad = Formula(exact_numbers(input)), exact_numbers(grad_output)
    parameter = epsilon.reshape([-1 if d == channel_dim else 1 for d in range(3)])
    slope = formula.input_derivative(exact_numbers(parameter))
    errors = error_in_ulps(grad_input, Terms(grad * slope.first, grad * slope.second))
    assert errors.max() <= TOLERANCES[dtype].derivative + 1
    shares = grad * formula.epsilon_derivative().second
    if channel_dim is not None:
        shares = shares.swapaxes(channel_dim, 2)
    assert_sums(grad_epsilon, shares.reshape(-1, epsilon.numel()), dtype)


def test_input_that_is_no_leaf(device: str) -> None:
    leaf, epsilon = arguments((4, 3), 1, device)
    scale = torch.tensor(0.5, dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(
        lambda x, e, s: crrelu_ext.crrelu((s * x).t(), (s * e), channel_dim=0) * x.t(),
        (leaf, epsilon, scale),
    )


def saved_by(function: Callable[[], Tensor]) -> list[Tensor]:
    saved = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return saved


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(("shape", "channel_dim"), [((64, 32), None), ((64, 32), 1), ((32, 64), 0)])
def test_what_is_saved(
    device: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    channel_dim: int | None,
    wanted: tuple[bool, bool],
) -> None:
    """The input and epsilon, as they are and nothing else."""
    input, epsilon = (t.detach().to(dtype) for t in arguments(shape, channel_dim, device))
    epsilon = epsilon.float() if dtype != torch.float64 else epsilon
    input.requires_grad_(wanted[0])
    epsilon.requires_grad_(wanted[1])
    saved = saved_by(lambda: bound(crrelu_ext.crrelu, channel_dim)(input, epsilon))
    assert sum(tensor.nbytes for tensor in saved) == input.nbytes + epsilon.nbytes
    assert {tensor.data_ptr() for tensor in saved} == {input.data_ptr(), epsilon.data_ptr()}


def test_nothing_is_saved_without_gradients(device: str) -> None:
    input, epsilon = arguments((4, 3), 1, device)
    with torch.no_grad():
        assert saved_by(lambda: crrelu_ext.crrelu(input, epsilon)) == []
    assert saved_by(lambda: crrelu_ext.crrelu(input.detach(), epsilon.detach())) == []


def test_saved_input_that_was_changed(device: str) -> None:
    for changed in range(2):
        leaves = arguments((4, 3), 1, device)
        both = [leaf * 1 for leaf in leaves]
        output = crrelu_ext.crrelu(*both)
        both[changed].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


def test_output_may_be_changed(device: str) -> None:
    """Nothing of it is needed for the backward pass."""
    input, epsilon = arguments((4, 3), 1, device)
    output = crrelu_ext.crrelu(input, epsilon)
    expected = torch.autograd.grad(output.sum() * 2, (input, epsilon), retain_graph=True)
    output.mul_(2)
    actual = torch.autograd.grad(output.sum(), (input, epsilon))
    torch.testing.assert_close(actual, expected)


def test_saved_tensors_may_be_offloaded(device: str) -> None:
    input, epsilon = arguments((4, 3), 1, device)
    expected = torch.autograd.grad(crrelu_ext.crrelu(input, epsilon).sum(), (input, epsilon))
    with torch.autograd.graph.save_on_cpu():
        output = crrelu_ext.crrelu(input, epsilon)
    actual = torch.autograd.grad(output.sum(), (input, epsilon))
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("epsilon_dtype", [torch.float32, None], ids=["float32", "inputs"])
@pytest.mark.parametrize(("shape", "channel_dim"), [((2000,), None), ((40, 50), 1), ((3, 700), 0)])
def test_mixed_dtypes(
    device: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    channel_dim: int | None,
    epsilon_dtype: torch.dtype | None,
) -> None:
    input, epsilon = (t.detach() for t in arguments(shape, channel_dim, device))
    input = input.to(dtype).requires_grad_()
    epsilon = epsilon.to(epsilon_dtype or dtype).requires_grad_()
    output = bound(crrelu_ext.crrelu, channel_dim)(input, epsilon)
    output.sum().backward()
    assert output.dtype == dtype
    assert input.grad is not None
    assert epsilon.grad is not None
    assert (input.grad.dtype, input.grad.shape) == (dtype, shape)
    assert (epsilon.grad.dtype, epsilon.grad.shape) == (epsilon.dtype, epsilon.shape)
    shares = Formula(exact_numbers(input)).epsilon_derivative().second
    if channel_dim is not None:
        shares = shares.swapaxes(channel_dim, -1)
    assert_sums(epsilon.grad, shares.reshape(-1, epsilon.numel()), dtype)


def test_checkpointing(device: str) -> None:
    input, epsilon = arguments((4, 3), 1, device)
    expected = torch.autograd.grad(crrelu_ext.crrelu(input, epsilon).sum(), (input, epsilon))
    output = checkpoint(crrelu_ext.crrelu, input, epsilon, use_reentrant=False)
    actual = torch.autograd.grad(output.sum(), (input, epsilon))
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_parameter_of_a_layer_that_is_deleted(device: str) -> None:
    """The graph keeps what it needs alive."""
    layer = crrelu_ext.CRReLU(3, init=0.5, device=device)
    input = torch.randn(4, 3, device=device, requires_grad=True)
    expected = torch.autograd.grad(layer(input).sum(), input)[0]
    output = nn.Sequential(layer, nn.Identity())(input)
    del layer
    output.sum().backward()
    assert input.grad is not None
    assert torch.equal(input.grad, expected)
