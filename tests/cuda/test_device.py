"""What only a GPU can show. All other tests run there too, along the device axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import crrelu_ext

from ..evaluation import evaluate

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and crrelu_ext.build_info()["cuda"]),
    reason="no GPU, or no CUDA kernels",
)
SMALL, LARGE = 4096, 2**22 + 13


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype)


def parameter(channels: int = 1) -> Tensor:
    return torch.linspace(-1.7, 0.5, channels + 1, device="cuda")[1:]


def error_in_ulps(actual: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """|actual - (first + second)|, in ulps of the larger of these."""
    info = torch.finfo(actual.dtype)
    larger = torch.maximum(first.abs(), second.abs()).clamp(info.smallest_normal, info.max)
    spacing = info.eps * torch.exp2(torch.frexp(larger).exponent.double() - 1)
    return (actual.double() - (first + second)).abs() / spacing


def assert_same(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("e", [0.01, -0.7, 1.9])
def test_accuracy(dtype: torch.dtype, e: float) -> None:
    """All numbers of a 16-bit type; else many. The harness's test does more, and needs no GPU."""
    if dtype.itemsize == 2:
        input = torch.arange(-0x8000, 0x8000, device="cuda").to(torch.int16).view(dtype)
        input = input[input.isfinite()]
    else:  # what float64 can judge
        end = 30 if dtype == torch.float32 else 3
        input = torch.linspace(-end, end, 2_000_001, device="cuda", dtype=dtype)
    epsilon = torch.tensor([e], device="cuda")
    result = evaluate(input, epsilon)
    x, e = input.double(), epsilon.item()
    gaussian = (-x.square() / 2).exp()
    near = x.clamp(-100, 100)
    bound = {torch.float32: 4, torch.float64: 30, torch.bfloat16: 1.01, torch.float16: 1.05}[dtype]
    assert error_in_ulps(result.output, x.relu(), e * near * gaussian).max() <= bound
    slope = e * (1 - near) * (1 + near) * gaussian
    assert error_in_ulps(result.grad_input, (x > 0).double(), slope).max() <= bound


@pytest.mark.parametrize(
    ("shape", "channel_dim"),
    [((LARGE,), 0), ((5000, 768), 1), ((3, 64, 3136), 1), ((7, 5, 3), -1), ((2, 3, 9001), 1)],
    ids=str,
)
@pytest.mark.parametrize("per_channel", [False, True])
def test_sums(
    dtype: torch.dtype, shape: tuple[int, ...], channel_dim: int, per_channel: bool
) -> None:
    if per_channel and len(shape) == 1:
        pytest.skip("one channel")
    input, grad_output = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype)
    channels = shape[channel_dim] if per_channel else 1
    result = evaluate(input, parameter(channels), grad_output, channel_dim=channel_dim)
    x = input.double()
    terms = (grad_output.double() * x * (-x.square() / 2).exp()).movedim(channel_dim, 0)
    terms = terms.reshape(channels, -1)
    bound = (1e-5 if dtype.itemsize == 2 else 1e-6) * terms.abs().sum(1)
    assert ((result.grad_epsilon.double() - terms.sum(1)).abs() <= bound).all()


@pytest.mark.parametrize("channels", [1, 768])
def test_epsilon_of_the_inputs_type(dtype: torch.dtype, channels: int) -> None:
    input, grad_output = normal(100, 768, dtype=dtype), normal(100, 768, dtype=dtype)
    epsilon = torch.full((channels,), -0.75, device="cuda")
    expected = evaluate(input, epsilon, grad_output)
    result = evaluate(input, epsilon.to(dtype), grad_output)
    assert_same(result[:2], expected[:2])
    torch.testing.assert_close(result.grad_epsilon, expected.grad_epsilon.to(dtype))


@pytest.mark.parametrize("shape", [(SMALL,), (LARGE,), (5000, 768), (3, 64, 3136)], ids=str)
@pytest.mark.parametrize("per_channel", [False, True])
def test_100_runs_have_the_same_bits(
    dtype: torch.dtype, shape: tuple[int, ...], per_channel: bool
) -> None:
    channel_dim = len(shape) // 2
    if per_channel and len(shape) == 1:
        pytest.skip("one channel")
    input, grad_output = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype)
    epsilon = parameter(shape[channel_dim] if per_channel else 1)
    first = evaluate(input, epsilon, grad_output, channel_dim=channel_dim)
    for _ in range(99):
        assert_same(evaluate(input, epsilon, grad_output, channel_dim=channel_dim), first)


@pytest.mark.parametrize("numel", [SMALL, LARGE])
def test_graphs(dtype: torch.dtype, numel: int) -> None:
    """A captured forward and backward pass, replayed with other numbers in the same memory."""
    input, grad_output, epsilon = (
        normal(numel, dtype=dtype),
        normal(numel, dtype=dtype),
        parameter(),
    )
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        evaluate(input, epsilon, grad_output)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = evaluate(input, epsilon, grad_output)
    for _ in range(3):
        input.normal_()
        grad_output.normal_()
        graph.replay()
        assert_same(captured, evaluate(input, epsilon, grad_output))


def test_streams() -> None:
    """Calls that overlap do not share memory of ours."""
    inputs = [normal(LARGE) for _ in range(8)]
    expected = [evaluate(input, parameter(), input) for input in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in inputs]
    for _ in range(20):
        results = []
        for input, stream in zip(inputs, streams, strict=True):
            with torch.cuda.stream(stream):
                results.append(evaluate(input, parameter(), input))
        torch.cuda.synchronize()
        for result, right in zip(results, expected, strict=True):
            assert_same(result, right)


@pytest.mark.parametrize("offset", range(9))
def test_misaligned_views(dtype: torch.dtype, offset: int) -> None:
    buffer, grads = normal(LARGE, dtype=dtype), normal(LARGE + 8, dtype=dtype)
    input, grad_output = buffer[offset:], grads[(3 * offset) % 8 :][: LARGE - offset]
    right = evaluate(input.clone(), parameter(), grad_output.clone())
    result = evaluate(input, parameter(), grad_output)
    assert torch.equal(result.output, right.output)
    assert torch.equal(result.grad_input, right.grad_input)
    torch.testing.assert_close(result.grad_epsilon, right.grad_epsilon)
    assert torch.equal(crrelu_ext.crrelu_(input, parameter()), right.output)


def test_epsilon_on_the_cpu_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="epsilon is on cpu but input is on cuda:0"):
        crrelu_ext.crrelu(normal(3), torch.tensor([0.5]))


def free_memory() -> int:
    return int(torch.cuda.mem_get_info()[0])


@pytest.mark.parametrize("channels", [1, 64])
def test_more_than_2_to_the_31_elements(channels: int) -> None:
    """bfloat16, beside the same in pieces that 32 bits can count."""
    numel = 2**31 + 3 * 2**14 + 64
    if free_memory() < 14 * numel:
        pytest.skip(f"needs {14 * numel / 2**30:.0f} GiB; {free_memory() / 2**30:.0f} are free")
    input = torch.empty(numel // 64, 64, dtype=torch.bfloat16, device="cuda").normal_()
    epsilon = parameter(channels)
    whole = evaluate(input, epsilon, input)
    pieces = [evaluate(piece, epsilon, piece) for piece in input.tensor_split(4)]
    assert torch.equal(whole.output, torch.cat([piece.output for piece in pieces]))
    assert torch.equal(whole.grad_input, torch.cat([piece.grad_input for piece in pieces]))
    # All terms but few are positive: the input is its own grad_output.
    total = torch.stack([piece.grad_epsilon.double() for piece in pieces]).sum(0)
    torch.testing.assert_close(whole.grad_epsilon.double(), total, rtol=1e-6, atol=0)


def test_sum_over_1_gi_elements() -> None:
    """Within 1e-6 of the sum of magnitudes; all terms positive, so that no error is made up for."""
    numel, period = 2**30, 1_048_573
    if free_memory() < 16 * numel:
        pytest.skip(f"needs {16 * numel / 2**30:.0f} GiB; {free_memory() / 2**30:.0f} are free")
    some = normal(period)
    repeats, rest = divmod(numel, period)
    input = some.repeat(repeats + 1)[:numel]
    result = evaluate(input, parameter(), input)
    terms = some.double().square() * (-some.double().square() / 2).exp()
    exact = repeats * math.fsum(terms.tolist()) + math.fsum(terms[:rest].tolist())
    assert abs(result.grad_epsilon.item() - exact) <= 1e-6 * exact
