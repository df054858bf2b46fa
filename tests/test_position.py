"""A result depends on its own input alone: not on where it lies, nor on what lies beside it.

All comparisons are of bits, the signs of zeros too; but a NaN is as good as any other. One epsilon
for all elements lets a kernel take a quicker way than an epsilon for each channel, so the last bit
may be another then; but it is the same for each way.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import crrelu_ext

from .evaluation import evaluate

OFFSETS, LENGTHS = range(65), range(131)
ON_GPU = range(9), (*range(18), 63, 64, 65, 130)
"""A pack has 8 elements at most; a launch, and the wait for its result, takes long."""
EPSILON = torch.tensor([-0.7])
MARK = 7.25  # fills what must not be written to
LARGE = 32 << 20  # bytes; the kernels write outputs from here on past the caches


def bits(tensor: Tensor) -> Tensor:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]
    return tensor.detach().view(integer).masked_fill(tensor.isnan(), -1)


def special(dtype: torch.dtype) -> Tensor:
    """Numbers that may take paths of their own, and some that do not."""
    info = torch.finfo(dtype)
    tiny = info.smallest_normal
    return torch.tensor(
        [
            *(0, -0.0, torch.inf, -torch.inf, torch.nan, info.max, -info.max),
            *(tiny, -tiny * info.eps, 1, -1, 8.5, -13.2, 20.5, -39),
        ],
        dtype=torch.float64,
    ).to(dtype)


def mixture(dtype: torch.dtype, numel: int, seed: int = 0) -> Tensor:
    """Random numbers, one in four of them a special one."""
    generator = torch.Generator().manual_seed(seed)
    x = (2 * torch.randn(numel, generator=generator, dtype=torch.float64)).to(dtype)
    at = torch.randperm(numel, generator=generator)[: numel // 4]
    choices = special(dtype)
    x[at] = choices[torch.randint(len(choices), at.shape, generator=generator)]
    return x


class Alone:
    """Some inputs, and what each gives when it is a tensor's only element; or, where there are
    epsilons for the channels, what it gives as a tensor of two channels that are alike."""

    def __init__(self, dtype: torch.dtype, device: str = "cpu", numel: int = 200) -> None:
        self.input = mixture(dtype, numel).to(device)
        self.grad_output = mixture(dtype, numel, seed=1).to(device)
        self.epsilon = EPSILON.to(device)
        each = [
            evaluate(self.input[i : i + 1], self.epsilon, self.grad_output[i : i + 1])
            for i in range(numel)
        ]
        self.output = torch.cat([results.output for results in each])
        self.grad_input = torch.cat([results.grad_input for results in each])
        two = self.epsilon.repeat(2)
        of_two = [
            evaluate(x.expand(1, 2), two, g.expand(1, 2))
            for x, g in zip(self.input, self.grad_output, strict=True)
        ]
        self.output_by_channel = torch.cat([results.output[0, :1] for results in of_two])
        self.grad_input_by_channel = torch.cat([results.grad_input[0, :1] for results in of_two])


@pytest.fixture(scope="module")
def alone() -> Callable[[torch.dtype, str], Alone]:
    known: dict[tuple[torch.dtype, str], Alone] = {}

    def get(dtype: torch.dtype, device: str) -> Alone:
        if (dtype, device) not in known:
            known[dtype, device] = Alone(dtype, device)
        return known[dtype, device]

    return get


Get = Callable[[torch.dtype, str], Alone]


def test_output_at_any_offset_and_length(alone: Get, dtype: torch.dtype, device: str) -> None:
    a = alone(dtype, device)
    expected = bits(a.output)
    offsets, lengths = (OFFSETS, LENGTHS) if device == "cpu" else ON_GPU
    for offset in offsets:
        for length in lengths:
            here = slice(offset, offset + length)
            output = crrelu_ext.crrelu(a.input[here], a.epsilon)
            assert torch.equal(bits(output), expected[here]), here


def test_gradient_at_any_offset_and_length(alone: Get, dtype: torch.dtype, device: str) -> None:
    """grad_output lies at other offsets than the input."""
    a = alone(dtype, device)
    expected = bits(a.grad_input)
    buffer = torch.empty(200, dtype=dtype, device=device)
    offsets, lengths = (OFFSETS, LENGTHS) if device == "cpu" else ON_GPU
    for offset in offsets:
        for length in lengths:
            here = slice(offset, offset + length)
            grad_output = buffer[7 * offset % 65 :][:length].copy_(a.grad_output[here])
            grad_input = evaluate(a.input[here], a.epsilon, grad_output).grad_input
            assert torch.equal(bits(grad_input), expected[here]), here


def test_memory_that_is_not_aligned_to_elements(
    alone: Get, dtype: torch.dtype, device: str
) -> None:
    if device != "cpu":
        pytest.skip("such tensors can only be made on the CPU")
    a = alone(dtype, device)
    for offset in range(1, dtype.itemsize):
        for length in (1, 7, 64, len(a.input)):
            size = length * dtype.itemsize
            memory = bytearray(offset) + a.input[:length].view(torch.uint8).numpy().tobytes()
            input = torch.frombuffer(memory, dtype=dtype, count=length, offset=offset)
            out = torch.frombuffer(bytearray(offset + size), dtype=dtype, offset=offset)
            assert torch.equal(bits(crrelu_ext.crrelu(input, a.epsilon)), bits(a.output[:length]))
            crrelu_ext.crrelu(input, a.epsilon, out=out)
            assert torch.equal(bits(out), bits(a.output[:length]))


@pytest.mark.parametrize("in_place", [False, True])
def test_writes_at_any_offset_and_length(
    alone: Get, dtype: torch.dtype, device: str, in_place: bool
) -> None:
    """out= and in place: the same bits as alone, and nothing beside them."""
    a = alone(dtype, device)
    for offset in OFFSETS:
        for length in LENGTHS[:: 1 if offset < 4 else 13]:
            buffer = torch.full((256,), MARK, dtype=dtype, device=device)
            expected = buffer.clone()
            expected[offset : offset + length] = a.output[:length]
            target = buffer[offset : offset + length]
            if in_place:
                target.copy_(a.input[:length])
                crrelu_ext.crrelu_(target, a.epsilon)
            else:
                crrelu_ext.crrelu(a.input[:length], a.epsilon, out=target)
            assert torch.equal(bits(buffer), bits(expected)), (offset, length)


@pytest.mark.parametrize(
    "two",
    [(torch.nan, -torch.inf), (torch.nan, 30), (torch.inf, -torch.inf), (-8.5, 13.2)],
    ids=str,
)
def test_two_among_others(dtype: torch.dtype, device: str, two: tuple[float, float]) -> None:
    """At every two places of 128: more than the kernels look at together."""
    numbers = torch.tensor([0.5, *two], dtype=dtype, device=device)
    each = [evaluate(number[None], EPSILON.to(device)) for number in numbers]
    output = torch.cat([results.output for results in each])
    grad_input = torch.cat([results.grad_input for results in each])
    at = torch.eye(128, dtype=torch.uint8, device=device)
    which = torch.maximum(at[:, None], 2 * at).long()
    results = evaluate(numbers[which], EPSILON.to(device))
    assert torch.equal(bits(results.output), bits(output[which]))
    assert torch.equal(bits(results.grad_input), bits(grad_input[which]))


@pytest.mark.parametrize("epsilon", [-0.7, 3e38, 1e-42])
@pytest.mark.parametrize("per_channel", [False, True])
def test_one_among_others(
    dtype: torch.dtype, device: str, per_channel: bool, epsilon: float
) -> None:
    """Each special number, at each place of 64, among as many of each other one."""
    numbers, parameter = special(dtype).to(device), torch.tensor([epsilon], device=device)
    alone = parameter.repeat(2 if per_channel else 1)
    each = [evaluate(number.expand(1, len(alone)), alone) for number in numbers]
    output = torch.cat([results.output[0, :1] for results in each])
    grad_input = torch.cat([results.grad_input[0, :1] for results in each])
    index = torch.arange(len(numbers), device=device)
    at = torch.eye(64, dtype=torch.bool, device=device)
    which = torch.where(at, index[:, None, None, None], index[:, None, None]).reshape(-1, 64)
    results = evaluate(numbers[which], parameter.repeat(64 if per_channel else 1))
    assert torch.equal(bits(results.output), bits(output[which]))
    assert torch.equal(bits(results.grad_input), bits(grad_input[which]))


@pytest.mark.parametrize("epsilon", [-0.7, 3e38, 1e-42])
def test_small_numbers_beside_large_ones(dtype: torch.dtype, device: str, epsilon: float) -> None:
    """Near 0 the kernels have a shorter way, on which all that they look at together must lie.
    Each element has an epsilon of its own, so that its share in the gradient shows as well.
    """
    x = torch.linspace(-30, 30, 6001, dtype=torch.float64).to(device, dtype)[None]
    parameter = torch.tensor([epsilon], device=device).expand(x.shape[1])
    small = evaluate(x, parameter)
    beside = torch.stack([x, torch.full_like(x, 60)], dim=2).reshape(1, -1)
    mixed = evaluate(beside, parameter.repeat(2))
    assert torch.equal(bits(mixed.output[:, ::2]), bits(small.output))
    assert torch.equal(bits(mixed.grad_input[:, ::2]), bits(small.grad_input))
    assert torch.equal(bits(mixed.grad_epsilon[::2]), bits(small.grad_epsilon))


@pytest.mark.parametrize("epsilon", [-0.7, 1.99, 3e38])
def test_term_beside_a_large_number(dtype: torch.dtype, device: str, epsilon: float) -> None:
    """What an element adds to the gradient of an epsilon that is the only one: the number beside it
    adds nothing, but decides which way is taken."""
    # As exact as the terms are, so that its type hides nothing.
    of = torch.promote_types(dtype, torch.float32)
    parameter = torch.tensor([epsilon], dtype=of, device=device)
    for x in torch.linspace(-30, 30, 601 if device == "cpu" else 61):
        term, mixed = (
            evaluate(torch.tensor([x, beside], dtype=dtype, device=device), parameter).grad_epsilon
            for beside in (0, 60)
        )
        assert torch.equal(bits(mixed), bits(term)), x


@pytest.mark.parametrize("wanted", ["input", "both"])
@pytest.mark.parametrize(
    ("shape", "channel_dim"),
    # Channels that lie next to each other, few rows and many; in short runs; in long runs.
    [((9, n), 1) for n in (1, 2, 3, 8, 15, 16, 17, 31, 33, 63, 64, 65, 129, 523)]
    + [((700, 3), 1), ((3, 700), 0), ((2, 5, 7), 1), ((3, 64, 49), 1), ((2, 3, 1000), 1)],
)
def test_epsilon_per_channel(
    alone: Get,
    dtype: torch.dtype,
    device: str,
    shape: tuple[int, ...],
    channel_dim: int,
    wanted: str,
) -> None:
    """In all layouts."""
    a = alone(dtype, device)
    index = torch.arange(torch.Size(shape).numel(), device=device).reshape(shape) % len(a.input)
    epsilon = a.epsilon.repeat(shape[channel_dim]).requires_grad_(wanted == "both")
    input = a.input[index].requires_grad_()
    output = crrelu_ext.crrelu(input, epsilon, channel_dim=channel_dim)
    (grad_input,) = torch.autograd.grad(output, input, a.grad_output[index])
    expected = (
        (a.output, a.grad_input)
        if shape[channel_dim] == 1
        else (a.output_by_channel, a.grad_input_by_channel)
    )
    assert torch.equal(bits(output), bits(expected[0][index]))
    assert torch.equal(bits(grad_input), bits(expected[1][index]))


@pytest.mark.parametrize("offset", [0, 1, 8])
@pytest.mark.parametrize("form", ["fresh", "out", "in_place"])
def test_large_output(alone: Get, dtype: torch.dtype, device: str, offset: int, form: str) -> None:
    a = alone(dtype, device)
    numel = LARGE // dtype.itemsize + 4567
    repeats = numel // len(a.input) + 1
    buffer = a.input.repeat(repeats)[: offset + numel]
    input = buffer[offset:]
    expected = bits(a.output.repeat(repeats)[offset : offset + numel])
    if form == "fresh":
        output = crrelu_ext.crrelu(input, a.epsilon)
    elif form == "in_place":
        output = crrelu_ext.crrelu_(input, a.epsilon)
        assert torch.equal(bits(buffer[:offset]), bits(a.input[:offset]))
    else:
        space = torch.full((offset + numel + 8,), MARK, dtype=dtype, device=device)
        output = crrelu_ext.crrelu(input, a.epsilon, out=space[offset : offset + numel])
        assert (space[:offset] == MARK).all()
        assert (space[offset + numel :] == MARK).all()
    assert torch.equal(bits(output), expected)


@pytest.mark.parametrize("channels", [None, 3, 200])
def test_large_gradient(alone: Get, dtype: torch.dtype, device: str, channels: int | None) -> None:
    a = alone(dtype, device)
    numel = LARGE // dtype.itemsize // 600 * 600 + 600 + (channels is None) * 17
    repeats = numel // len(a.input) + 1
    shape = {None: (numel,), 3: (1, 3, numel // 3), 200: (numel // 200, 200)}[channels]
    results = evaluate(
        a.input.repeat(repeats)[:numel].reshape(shape),
        a.epsilon.repeat(channels or 1),
        a.grad_output.repeat(repeats)[:numel].reshape(shape),
    )
    output, grad_input = (
        (a.output, a.grad_input)
        if channels is None
        else (a.output_by_channel, a.grad_input_by_channel)
    )
    assert torch.equal(bits(results.output).flatten(), bits(output.repeat(repeats)[:numel]))
    expected = bits(grad_input.repeat(repeats)[:numel])
    assert torch.equal(bits(results.grad_input).flatten(), expected)
