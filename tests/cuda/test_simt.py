"""The CUDA kernels' own source, run on the CPU: tests that need no GPU.

The machine (tests/cpp/simt) shuffles the blocks and, between barriers, the threads; it fails an
access outside the tensors or off its alignment.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from crrelu_ext import reference

from ..oracle import Array, Formula, Terms, error_in_ulps, exact_numbers, steps_from_rounded
from ..tolerances import NEIGHBOUR, assert_sums
from . import simt
from .simt import Layout, Machine

EXP2_ERROR = 2
"""In ulp, around the correctly rounded result: what CUDA's documentation allows the instruction."""
VALUE_ERROR = {torch.float32: 4, torch.float64: 4, torch.bfloat16: 1.01, torch.float16: 1.05}
"""Of f and its derivatives: in ulps of the larger term."""
EPSILONS = (0.01, -0.7, -1.69, 1.9)
LAYOUTS = [
    *[Layout(1, 1, numel) for numel in (1, 2, 7, 8, 9, 255, 1023, 4096, 4097, 16_384, 70_001)],
    # rows
    *[Layout(outer, channels, 1) for outer, channels in product((1, 3, 100), (2, 3, 64, 257))],
    Layout(5, 3, 7),
    Layout(2, 64, 49),
    Layout(1, 5000, 3),
    Layout(3000, 2, 1),
    Layout(90, 48, 1),
    # runs
    Layout(1, 2, 1024),
    Layout(3, 5, 1025),
    Layout(2, 2, 9001),
]


def normal(numel: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(numel, generator=generator, dtype=torch.float64)).to(dtype)


def placed(tensor: Tensor, offset: int) -> Tensor:
    """A copy that starts so many elements behind a multiple of 16 bytes."""
    buffer = torch.empty(tensor.numel() + 64 // tensor.itemsize, dtype=tensor.dtype)
    first = -buffer.data_ptr() % 16 // tensor.itemsize + offset
    return buffer[first : first + tensor.numel()].copy_(tensor.flatten())


def bits(tensor: Tensor) -> Tensor:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]
    return tensor.view(integer).masked_fill(tensor.isnan(), -1)


class Results(NamedTuple):
    output: Tensor
    grad_inputs: list[Tensor | None]
    grad_epsilon: Tensor | None


def evaluate(
    machine: Machine,
    inputs: Sequence[Tensor],
    epsilon: Tensor | simt.Placed,
    grad_output: Tensor,
    layout: Layout,
    *,
    wanted: Sequence[bool] = (True, True),
    offset: int = 0,
    other: int = 0,
) -> Results:
    """All that the kernels give; new tensors start `offset` elements behind a multiple of 16 bytes,
    the second input's gradient `other`.

    ``wanted`` is of the inputs' gradients, and of epsilon's.
    """
    unset = torch.full_like(inputs[0], torch.nan)
    output = machine.forward(inputs, epsilon, layout, placed(unset, offset))
    places = [offset, other][: len(inputs)]
    grad_inputs = [placed(unset, place) if wanted[0] else None for place in places]
    numbers = epsilon.epsilon if isinstance(epsilon, simt.Placed) else epsilon
    grad_epsilon = torch.full_like(numbers, torch.nan) if wanted[1] else None
    machine.backward(grad_output, inputs, epsilon, layout, [*grad_inputs, None][:2], grad_epsilon)
    return Results(output, grad_inputs, grad_epsilon)


def terms_by_channel(inputs: Sequence[Tensor], grad_output: Tensor, layout: Layout) -> Array:
    terms = (
        exact_numbers(grad_output) * Formula(exact_numbers(inputs[0])).epsilon_derivative().second
    )
    if len(inputs) == 2:
        terms = terms * exact_numbers(inputs[1])
    return np.moveaxis(terms.reshape(layout), 1, -1).reshape(-1, layout.channels)


def assert_exact(actual: Tensor, terms: Terms) -> None:
    assert error_in_ulps(actual, terms).max() <= VALUE_ERROR[actual.dtype]
    if actual.itemsize == 2:
        assert steps_from_rounded(actual, terms).max() <= NEIGHBOUR


def sample(dtype: torch.dtype) -> Tensor:
    """All numbers of a 16-bit type; else some from everywhere, most from where it matters."""
    if dtype.itemsize == 2:
        return torch.arange(-0x8000, 0x8000).to(torch.int16).view(dtype)
    info = torch.finfo(dtype)
    count = 300_000 if dtype == torch.float32 else 3000
    special = [0.0, -0.0, info.max, -info.max, info.tiny, 20.5, -1e15]
    generator = torch.Generator().manual_seed(0)
    powers = torch.rand(count, generator=generator, dtype=torch.float64) * 270 - 140
    signs = 1 - 2 * (torch.arange(count) % 2)
    return torch.cat(
        [
            torch.tensor(special, dtype=dtype),
            normal(count, dtype, seed=1),
            torch.linspace(-30, 30, count, dtype=dtype),
            (signs * 2**powers).to(dtype),
        ]
    )


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_accuracy(library: Path, dtype: torch.dtype, epsilon: float) -> None:
    x = sample(dtype)
    machine = Machine(library, exp2_error=EXP2_ERROR)
    parameter = torch.tensor([epsilon], dtype=torch.float32)
    ones = torch.ones_like(x)
    result = evaluate(machine, [x], parameter, ones, Layout(1, 1, len(x)), wanted=(True, False))
    formula = Formula(exact_numbers(x))
    assert_exact(result.output, formula.value(parameter.item()))
    assert result.grad_inputs[0] is not None
    assert_exact(result.grad_inputs[0], formula.input_derivative(parameter.item()))


@pytest.mark.parametrize("epsilon", [*EPSILONS, 3.7, -2e30])
def test_neighbours_do_not_matter(library: Path, dtype: torch.dtype, epsilon: float) -> None:
    """Beside a number far from 0, all that is computed together goes the other way."""
    x = sample(dtype)
    parameter, machine = torch.tensor([epsilon], dtype=torch.float32), Machine(library)

    def results(beside: Tensor) -> list[Tensor]:
        both = torch.stack([x, beside], 1).flatten()
        layout = Layout(1, 1, len(both))
        ones = torch.ones_like(both)
        result = evaluate(machine, [both], parameter, ones, layout, wanted=(True, False))
        assert result.grad_inputs[0] is not None
        return [tensor[::2].nan_to_num(0.5) for tensor in (result.output, result.grad_inputs[0])]

    for alone, mixed in zip(results(x), results(torch.full_like(x, 50)), strict=True):
        assert torch.equal(bits(alone), bits(mixed))


def test_limits(library: Path, dtype: torch.dtype) -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=dtype)
    ones, epsilon = torch.ones_like(x), torch.tensor([-0.7])
    result = evaluate(Machine(library), [x], epsilon, ones, Layout(1, 1, 3))
    assert result.output[:2].tolist() == [torch.inf, 0]
    assert result.grad_inputs[0] is not None
    assert result.grad_inputs[0][:2].tolist() == [1, 0]
    assert result.output[2].isnan()
    assert result.grad_inputs[0][2].isnan()


@pytest.mark.parametrize("inputs", [1, 2], ids=["plain", "gated"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("multiprocessors", [1, 7])
def test_layouts(
    library: Path, dtype: torch.dtype, layout: Layout, inputs: int, multiprocessors: int
) -> None:
    """Every result, over sizes and grids; sums have the same bits in any order of blocks."""
    if dtype == torch.float64 and layout.numel > 2100:
        pytest.skip("mpmath is slow; test_accuracy has more elements")
    assert_layout(library, dtype, layout, inputs, multiprocessors)


def test_stretches_that_would_fill_a_part_of_a_tile(library: Path) -> None:
    """Many of them are rows."""
    assert_layout(library, torch.bfloat16, Layout(65, 2, 1100), 1, 7)


def assert_layout(
    library: Path, dtype: torch.dtype, layout: Layout, inputs: int, multiprocessors: int
) -> None:
    x = [normal(layout.numel, dtype, seed) for seed in range(inputs)]
    grad_output = normal(layout.numel, dtype, seed=2)
    epsilon = torch.linspace(-1.7, 0.5, layout.channels, dtype=dtype)
    results = [
        evaluate(
            Machine(library, multiprocessors=multiprocessors, seed=seed),
            x, epsilon, grad_output, layout,
        )
        for seed in range(2)
    ]  # fmt: skip
    first, second = results
    assert first.grad_epsilon is not None
    assert second.grad_epsilon is not None
    assert torch.equal(bits(first.grad_epsilon), bits(second.grad_epsilon))
    assert_sums(first.grad_epsilon, terms_by_channel(x, grad_output, layout), dtype)

    each = exact_numbers(epsilon)[None, :, None]
    formula = Formula(exact_numbers(x[0]).reshape(layout))
    value, slope = formula.value(each), formula.input_derivative(each)
    grad = exact_numbers(grad_output).reshape(layout)
    up = exact_numbers(x[1]).reshape(layout) if inputs == 2 else 1
    expected = [
        (first.output, Terms(value.first * up, value.second * up)),
        (first.grad_inputs[0], Terms(grad * up * slope.first, grad * up * slope.second)),
        (first.grad_inputs[-1], Terms(grad * value.first, grad * value.second)),
    ]
    for actual, terms in expected[: 1 + inputs]:
        assert actual is not None
        # What multiplies the formula's value adds a rounding each.
        error = error_in_ulps(actual.reshape(layout), terms).max()
        assert error <= VALUE_ERROR[dtype] + 2.5


OFFSETS = {torch.float32: range(4), torch.float64: range(2)}


@pytest.mark.parametrize(
    "layout", [Layout(1, 1, 5003), Layout(17, 5, 3), Layout(2, 3, 1031)], ids=str
)
def test_alignments(library: Path, dtype: torch.dtype, layout: Layout) -> None:
    """No result depends on where a tensor starts, the tensors alike or each elsewhere."""
    machine = Machine(library)
    x, up, grad = (normal(layout.numel, dtype, seed) for seed in range(3))
    epsilon = torch.linspace(-1.7, 0.5, layout.channels)
    aligned = evaluate(machine, [placed(x, 0), placed(up, 0)], epsilon, placed(grad, 0), layout)
    terms = terms_by_channel([x, up], grad, layout)
    offsets = OFFSETS.get(dtype, range(8))
    for offset, other in product(offsets, offsets):
        inputs = [placed(x, offset), placed(up, other)]
        result = evaluate(
            machine, inputs, epsilon, placed(grad, other), layout, offset=offset, other=other
        )
        assert torch.equal(result.output, aligned.output)
        for actual, expected in zip(result.grad_inputs, aligned.grad_inputs, strict=True):
            assert actual is not None
            assert expected is not None
            assert torch.equal(actual, expected)
        assert result.grad_epsilon is not None
        assert_sums(result.grad_epsilon, terms, dtype)


@pytest.mark.parametrize(
    "layout", [Layout(1, 1, 40_000), Layout(40, 100, 4), Layout(3, 2, 4096)], ids=str
)
def test_what_is_not_wanted_changes_nothing(
    library: Path, dtype: torch.dtype, layout: Layout
) -> None:
    machine = Machine(library)
    x, grad = normal(layout.numel, dtype, 0), normal(layout.numel, dtype, 1)
    epsilon = torch.linspace(-1.7, 0.5, layout.channels)
    both = evaluate(machine, [x], epsilon, grad, layout)
    frozen_epsilon = evaluate(machine, [x], epsilon, grad, layout, wanted=(True, False))
    assert machine.counts.stored == x.nbytes
    assert machine.counts.launches == 1
    assert both.grad_inputs[0] is not None
    assert frozen_epsilon.grad_inputs[0] is not None
    assert torch.equal(both.grad_inputs[0], frozen_epsilon.grad_inputs[0])
    frozen_input = evaluate(machine, [x], epsilon, grad, layout, wanted=(False, True))
    assert both.grad_epsilon is not None
    assert frozen_input.grad_epsilon is not None
    assert torch.equal(both.grad_epsilon, frozen_input.grad_epsilon)


def test_every_byte_is_moved_once(library: Path, dtype: torch.dtype) -> None:
    layout = Layout(1, 1, 300_000)
    machine = Machine(library)
    x, grad, epsilon = normal(layout.numel, dtype, 0), normal(layout.numel, dtype, 1), torch.ones(1)
    machine.forward([placed(x, 0)], epsilon, layout, placed(x, 0))
    assert machine.counts.launches == 1
    assert machine.counts.stored == x.nbytes
    # One load of epsilon for each thread.
    assert machine.counts.loaded == x.nbytes + 4 * 256 * machine.counts.blocks
    output, gradient = placed(x, 0), torch.empty(1)
    machine.backward(placed(grad, 0), [placed(x, 0)], epsilon, layout, [output, None], gradient)
    slots = machine.counts.blocks - 1
    assert machine.counts.launches == 2
    assert machine.counts.stored == x.nbytes + 8 * slots + 4
    assert machine.counts.loaded == 2 * x.nbytes + 4 * 256 * slots + 8 * slots


GAPS = [(3, 8, 16), (70, 24, 32), (5, 4096, 4104), (300, 128, 384), (40, 8, 0), (1000, 64, 80)]
"""Rows, their elements, and elements from one to the next; of each 16-bit type."""


@pytest.mark.parametrize("inputs", [1, 2], ids=["plain", "gated"])
@pytest.mark.parametrize(("rows", "length", "stride"), GAPS)
@pytest.mark.parametrize("multiprocessors", [1, 7])
def test_gaps_between_rows(
    library: Path, dtype: torch.dtype, rows: int, length: int, stride: int, inputs: int,
    multiprocessors: int,
) -> None:  # fmt: skip
    """The bits of tensors without gaps, whichever of the tensors have them; they are not read."""
    length, stride = (2 * size // dtype.itemsize for size in (length, stride))

    def with_gaps(tensor: Tensor) -> Tensor:
        if stride == 0:
            return tensor[:length].expand(rows, length)
        memory = placed(torch.full(((rows - 1) * stride + length,), torch.nan, dtype=dtype), 0)
        return memory.as_strided((rows, length), (stride, 1)).copy_(tensor.view(rows, length))

    machine = Machine(library, multiprocessors=multiprocessors)
    tensors = [normal(rows * length, dtype, seed) for seed in range(inputs + 1)]
    gapped = [with_gaps(tensor) for tensor in tensors]
    dense = [placed(tensor.flatten(), 0) for tensor in gapped]
    epsilon = torch.tensor([-0.7])
    one = evaluate(machine, dense[1:], epsilon, dense[0], Layout(1, 1, rows * length))
    loaded = machine.counts.loaded
    which = product((False, True), repeat=inputs + 1)
    for chosen in [list(choice) for choice in which if any(choice)]:
        grad_output, *x = [(dense, gapped)[gap][k] for k, gap in enumerate(chosen)]
        result = evaluate(machine, x, epsilon, grad_output, Layout(rows, 1, length))
        assert machine.counts.loaded == loaded
        for actual, expected in (
            (result.output, one.output),
            (result.grad_epsilon, one.grad_epsilon),
            *zip(result.grad_inputs, one.grad_inputs, strict=True),
        ):
            assert actual is not None
            assert expected is not None
            assert torch.equal(bits(actual), bits(expected))


def test_what_a_tile_lacks_is_not_computed(library: Path) -> None:
    """Images that leave a part of a block's tile empty, and one that fills two tiles."""
    machine = Machine(library, multiprocessors=132)
    for layout, tiles in (
        (Layout(2, 5, 1024), 1),
        (Layout(2, 5, 3136), 1),
        (Layout(2, 8, 16384), 2),
    ):
        x, epsilon = placed(normal(layout.numel, torch.bfloat16, 0), 0), torch.ones(layout.channels)
        output = machine.forward([x], epsilon, layout, placed(x, 0))
        assert machine.counts.exponentials == layout.numel
        assert machine.counts.blocks == 2 * layout.channels * tiles
        machine.backward(
            output, [x], epsilon, layout, [placed(x, 0), None], torch.empty_like(epsilon)
        )
        assert machine.counts.exponentials == layout.numel


@pytest.mark.parametrize("layout", [Layout(1, 1, 4096), Layout(32, 768, 1)], ids=str)
def test_small_sizes_take_one_launch(library: Path, dtype: torch.dtype, layout: Layout) -> None:
    x, epsilon = normal(layout.numel, dtype, 0), torch.ones(layout.channels)
    machine = Machine(library, multiprocessors=132)
    evaluate(machine, [x], epsilon, x, layout)
    assert machine.counts.launches == 1


def test_in_place(library: Path, dtype: torch.dtype) -> None:
    layout, epsilon = Layout(3, 5, 401), torch.linspace(-1, 1, 5)
    x = placed(normal(layout.numel, dtype, 0), 1)
    machine = Machine(library)
    expected = machine.forward([x], epsilon, layout, torch.empty_like(x))
    assert torch.equal(machine.forward([x], epsilon, layout, x), expected)


@pytest.mark.parametrize("epsilon_dtype", [torch.float32, None], ids=["float32", "the input's"])
def test_epsilon_of_either_type(
    library: Path, dtype: torch.dtype, epsilon_dtype: torch.dtype | None
) -> None:
    layout = Layout(9, 4, 5)
    epsilon = torch.tensor([0.5, -0.25, 1, -1.5], dtype=epsilon_dtype or dtype)
    x, grad = normal(layout.numel, dtype, 0), normal(layout.numel, dtype, 1)
    result = evaluate(Machine(library), [x], epsilon, grad, layout)
    assert result.grad_epsilon is not None
    assert_sums(result.grad_epsilon, terms_by_channel([x], grad, layout), dtype)


@pytest.mark.parametrize("epsilon", [torch.nan, torch.inf, 3e38, 1e-42])
def test_special_epsilons(library: Path, epsilon: float) -> None:
    x = sample(torch.float32)[:4096]
    parameter = torch.tensor([epsilon])
    output = Machine(library).forward(
        [x], parameter, Layout(1, 1, len(x)), torch.full_like(x, torch.nan)
    )
    if np.isfinite(epsilon):
        assert_exact(output, Formula(exact_numbers(x)).value(parameter.item()))
    elif np.isnan(epsilon):
        assert output.isnan().all()
    else:
        near = (x != 0) & (x.abs() < 10)
        assert (output[near] == epsilon * x[near].sign()).all()


def test_equal_terms(library: Path) -> None:
    """Each addition of the same number rounds the same way: no error is made up for by another."""
    for layout, x in product([Layout(1, 1, 65_536), Layout(512, 128, 1)], (0.05, 0.7, 1.3, 3.95)):
        input = torch.full((layout.numel,), x)
        ones, epsilon = torch.ones_like(input), torch.full((layout.channels,), 0.01)
        result = evaluate(Machine(library), [input], epsilon, ones, layout, wanted=(False, True))
        assert result.grad_epsilon is not None
        assert_sums(result.grad_epsilon, terms_by_channel([input], ones, layout), torch.float32)


HUGE = 4096 * 16 * 132 * 249 - 2048
"""Elements of a bfloat16 tensor: more than 2^31 of them, and 2^32 bytes. Of the backward pass on
132 multiprocessors the last block has the last tile."""


class Sparse(NamedTuple):
    """A tensor of zeros that takes space only where it is written."""

    file: BinaryIO
    tensor: Tensor

    @classmethod
    def new(cls, numel: int) -> Sparse:
        file = os.fdopen(os.memfd_create("tensor"), "r+b")
        file.truncate(2 * numel)
        tensor = torch.frombuffer(mmap.mmap(file.fileno(), 2 * numel), dtype=torch.bfloat16)
        return cls(file, tensor)

    def touched(self) -> list[slice]:
        """Where the tensor takes space."""
        found: list[slice] = []
        end = 0
        while True:
            try:
                begin = os.lseek(self.file.fileno(), end, os.SEEK_DATA)
            except OSError:  # nothing behind
                return found
            end = os.lseek(self.file.fileno(), begin, os.SEEK_HOLE)
            found.append(slice(begin // 2, end // 2))


@pytest.mark.parametrize(
    ("layout", "gap"),
    [
        (Layout(1, 1, HUGE), 0),
        (Layout(2, 2, HUGE // 4), 0),
        (Layout(HUGE // 2048, 2, 1024), 0),
        (Layout(HUGE // 64, 64, 1), 0),
        (Layout(25, 1, HUGE // 25), 24),
    ],
    ids=str,
)
def test_more_than_2_to_the_31_elements(library: Path, layout: Layout, gap: int) -> None:
    """Some blocks of the grid, the first and the last among them, on tensors that are mostly 0."""
    x, y = Sparse.new(HUGE + layout.outer * gap), Sparse.new(HUGE)

    def places(part: slice) -> Tensor:
        """Where x has these elements."""
        elements = torch.arange(part.start, part.stop)
        return elements + elements // layout.inner * gap

    tile = 32_768
    for start in (0, 2**30, 2**31 - tile, HUGE - tile):
        x.tensor[places(slice(start, start + tile))] = 2
    # Not negative: 0 · f'(0) has its sign.
    epsilon, gaussian = torch.full((layout.channels,), 0.5), math.exp(-2)
    machine = Machine(library, multiprocessors=132, most_blocks=40)
    rows = x.tensor.as_strided((HUGE // layout.inner, layout.inner), (layout.inner + gap, 1))

    def assert_right(at_2: float) -> None:
        """All that was written, and at both ends something was."""
        touched = y.touched()
        assert touched[0].start == 0
        assert touched[-1].stop == HUGE
        for part in touched:
            written = y.tensor[part]
            assert ((written == 0) | (x.tensor[places(part)] == 2)).all()
            assert ((written == 0) | (written == torch.tensor(at_2).bfloat16())).all()
        assert (y.tensor[:8] != 0).all()
        assert (y.tensor[-8:] != 0).all()

    machine.forward([rows], epsilon, layout, y.tensor)
    assert_right(2 + 0.5 * 2 * gaussian)
    y = Sparse.new(HUGE)
    machine.settings.most_blocks = 3
    grad_epsilon = torch.full_like(epsilon, torch.nan)
    machine.backward(rows, [rows], epsilon, layout, [y.tensor, None], grad_epsilon)
    assert_right(2 * (1 - 0.5 * 3 * gaussian))


@pytest.mark.parametrize("knots", [2, 33, 257])
@pytest.mark.parametrize("table_dtype", [torch.float32, torch.float64], ids=str)
def test_tables(library: Path, dtype: torch.dtype, table_dtype: torch.dtype, knots: int) -> None:
    """Beside the composed formula in float64: inside, beyond both ends, at infinity, NaN."""
    places = torch.linspace(-3, 4, knots, dtype=table_dtype)
    table = torch.stack([places, torch.sin(places), torch.cos(places)])
    machine = Machine(library)
    prepared = machine.prepare_table(table, dtype)
    assert machine.counts.launches == 1
    for numel, offset in ((1, 0), (4099, 0), (4099, 1), (70_001, 3)):
        x, grad_output = normal(numel, dtype, 0), normal(numel, dtype, 1)
        x[:1] = torch.nan
        layout = Layout(1, 1, numel)
        output = machine.forward([x], prepared, layout, placed(torch.zeros_like(x), offset))
        grad = placed(torch.zeros_like(x), offset)
        machine.backward(grad_output, [x], prepared, layout, [grad, None], None)
        wide = x.double().requires_grad_()
        exact = reference.tabulated(wide, table.double())
        (slope,) = torch.autograd.grad(exact.sum(), wide)
        stored = torch.finfo(dtype).eps
        arithmetic = 40 * (2**-52 if dtype == torch.float64 else 2**-23)
        expected = (slope * grad_output.double()).where(~wide.isnan(), torch.nan)
        for actual, right, rounding in (
            (output, exact.detach(), arithmetic),
            (grad, expected, arithmetic * knots),  # values are differentiated
        ):
            torch.testing.assert_close(
                actual.double(), right, rtol=stored, atol=rounding, equal_nan=True
            )
    limits = torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=dtype)
    output = machine.forward([limits], prepared, Layout(1, 1, 3), torch.zeros_like(limits))
    expected = reference.tabulated(limits.double(), table.double())
    torch.testing.assert_close(output.double(), expected, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_placed(library: Path, dtype: torch.dtype, layout: Layout) -> None:
    """Beside the composed formula in float64, over layouts; sums in a fixed order."""
    machine = Machine(library, multiprocessors=3)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, grad_output = normal(layout.numel, dtype, 0), normal(layout.numel, dtype, 1)
    channels = torch.linspace(0, 1, layout.channels, dtype=wide)
    parameter = simt.Placed(0.7 - 2 * channels, 3 * channels - 1, 0.5 + channels)
    result = evaluate(machine, [x], parameter, grad_output, layout, offset=1)
    other = Machine(library, multiprocessors=3, seed=1)
    again = evaluate(other, [x], parameter, grad_output, layout, offset=1)
    assert result.grad_epsilon is not None
    assert again.grad_epsilon is not None
    assert torch.equal(bits(again.grad_epsilon), bits(result.grad_epsilon))

    exact = x.double().reshape(layout).requires_grad_()
    epsilon = parameter.epsilon.double().requires_grad_()
    place = torch.stack(parameter[1:]).double()
    value = reference.crrelu_at(exact, epsilon, place)
    grad = grad_output.double().reshape(layout)
    for_x, for_epsilon = torch.autograd.grad(value, (exact, epsilon), grad)
    rounding = 16 * torch.finfo(wide).eps  # u has two roundings, up to (1 + u²)/σ of which count
    stored = torch.finfo(dtype).eps
    assert result.grad_inputs[0] is not None
    for actual, right in (
        (result.output.reshape(layout), value.detach()),
        (result.grad_inputs[0].reshape(layout), for_x),
    ):
        torch.testing.assert_close(actual.double(), right, rtol=stored, atol=rounding)
    bound = 1e-5 * grad.abs().sum((0, 2)) + rounding
    assert ((result.grad_epsilon.double() - for_epsilon).abs() <= bound).all()


@pytest.mark.parametrize(
    "layout",
    [Layout(1, 1, 5), Layout(1, 1, 70_001), Layout(40, 7, 1), Layout(3, 5, 400)],
    ids=str,
)
@pytest.mark.parametrize("samples", [1, 1000, 2**40])
def test_counts(library: Path, dtype: torch.dtype, layout: Layout, samples: int) -> None:
    """Those of the operator on the CPU, in any order of blocks; what was there stays."""
    x = normal(layout.numel, dtype, 0)
    x[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    channels = torch.linspace(0, 1, layout.channels)
    place = torch.stack([channels - 0.5, 0.1 + channels])
    expected = torch.ones(layout.channels, 259, dtype=torch.int64)
    torch.ops.crrelu_ext.count_(x.reshape(layout), place, samples, 1, expected)
    for seed in range(2):
        counts = torch.ones_like(expected)
        Machine(library, seed=seed).count(x, place, samples, layout, counts)
        assert torch.equal(counts, expected)


def test_counts_of_rows_with_gaps(library: Path, dtype: torch.dtype) -> None:
    rows = normal(40 * 120, dtype, 0).view(40, 120)[:, 7:60]
    place, counts = torch.tensor([[0.5], [0.1]]), torch.zeros(2, 1, 259, dtype=torch.int64)
    torch.ops.crrelu_ext.count_(rows.contiguous(), place, 1000, 1, counts[0])
    Machine(library).count(rows, place, 1000, Layout(40, 1, 53), counts[1])
    assert torch.equal(*counts)


# The machine itself: it must see what it is there to see.


@pytest.mark.parametrize(
    ("file", "right", "wrong", "seen"),
    [
        ("reduce.cuh", "  __syncthreads();\n", "", None),
        ("pack.cuh", "if (valid.covers(k, k + 1)) element", "element", "a load outside"),
        ("pack.cuh", "misalignment(p) == 0 && valid.covers", "valid.covers", "not aligned"),
        ("loops.cuh", "if (!sums.wanted()) return;", "if (threadIdx.x == 0) return;", "barrier"),
    ],
    ids=["barrier left out", "reads beyond", "stores off alignment", "barrier not for all"],
)
def test_a_broken_kernel_is_noticed(
    tmp_path: Path, file: str, right: str, wrong: str, seen: str | None
) -> None:
    source = Path(shutil.copytree(simt.ROOT / "csrc", tmp_path / "csrc"))
    table = source / "cuda/kernels.cu"  # of one type and activation, for the compiler's time
    only = re.sub(
        r"kernels\[kStorages\] = .*?;",
        "kernels[] = {kernels_of<float>()};",
        table.read_text(),
        flags=re.DOTALL,
    )
    for other in ("CRReLU", "CRReLUPlaced", "Tabulated"):
        only = only.replace(f"Tables<{other}>", "Tables<CRReLUGated>")
    table.write_text(only)
    broken = source / "cuda" / file
    text = broken.read_text()
    assert right in text
    broken.write_text(text.replace(right, wrong))
    machine = Machine(simt.build(tmp_path, source))
    layout, dtype = Layout(1, 1, 5003), torch.float32
    x, grad, epsilon = normal(5003, dtype, 0), normal(5003, dtype, 1), torch.ones(1)
    if seen:
        with pytest.raises(simt.MachineError, match=seen):
            evaluate(machine, [x, placed(x, 1)], epsilon, grad, layout, other=1)
        return
    result = evaluate(machine, [x, x], epsilon, grad, layout)
    assert result.grad_epsilon is not None
    with pytest.raises(AssertionError):
        assert_sums(result.grad_epsilon, terms_by_channel([x, x], grad, layout), dtype)
