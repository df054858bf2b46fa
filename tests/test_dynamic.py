"""DynamicActivation measures, ActivationScheduler derives."""

from __future__ import annotations

import copy
import io
import math
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
from torch.distributions import Normal
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from crrelu_ext import (
    ActivationScheduler,
    CRReLU,
    DynamicActivation,
    DynamicCRReLU,
    eafo,
    plot_history,
    replace_activation,
)
from crrelu_ext.dynamic import ABOVE, BELOW, BINS, NOT_FINITE
from crrelu_ext.eafo.streaming import Streams
from crrelu_ext.reference import tabulated
from crrelu_ext.updates import Update

from .test_distributed import in_processes
from .test_strides import allocated_bytes


def counted(
    input: Tensor, location: float = 0.0, scale: float = 1.0, samples: int = 2**40
) -> Tensor:
    counts = torch.zeros(1, BINS + 3, dtype=torch.int64, device=input.device)
    place = torch.tensor([[location], [scale]], device=input.device)
    torch.ops.crrelu_ext.count_(input, place, samples, 0, counts)
    return counts[0]


def quantiles(density: Normal, number: int = 200_000) -> Tensor:
    """As good as a very large sample."""
    return density.icdf((torch.arange(number, dtype=torch.float64) + 0.5) / number)


def falls(update: Update) -> bool:
    assert update.entropy is not None
    assert update.entropy_before is not None
    return update.entropy < update.entropy_before


def train(
    scheduler: ActivationScheduler, inputs: dict[DynamicActivation, Normal], steps: int
) -> None:
    for _ in range(steps):
        for layer, density in inputs.items():
            layer(density.sample((4096,)))
        scheduler.step()


def test_counts(device: str, dtype: torch.dtype) -> None:
    x = torch.randn(7, 11, 13, device=device).to(dtype) * 4 + 1
    x.view(-1)[:4] = torch.tensor([math.inf, -math.inf, math.nan, 1e4])
    edges = np.linspace(1 - 8 * 2, 1 + 8 * 2, BINS + 1)
    finite = x[x.isfinite()].cpu().double().numpy()
    expected, _ = np.histogram(finite, edges)
    for layout in (x, x.transpose(0, 1), x.transpose(0, 1)[:, :, ::2]):
        counts = counted(layout, 1.0, 2.0).cpu()
        assert counts.sum() == layout.numel()
        if layout.numel() == x.numel():
            assert counts[NOT_FINITE] == 3
            assert counts[ABOVE] == (finite >= edges[-1]).sum()
            assert counts[BELOW] == (finite < edges[0]).sum()
            assert np.array_equal(counts[1:ABOVE].numpy(), expected)


def test_only_a_sample_is_counted(device: str) -> None:
    x = torch.randn(64, 1024, device=device)
    total = counted(x, samples=1000).sum()
    assert 900 <= total <= 1100
    # One channel that stands out is met as often as any other.
    x[:, 0] = 100
    assert 0 < counted(x, samples=8000)[ABOVE] < 40
    assert counted(torch.empty(0, device=device)).sum() == 0


@pytest.mark.parametrize(
    "shape",
    [(128, 120), (256, 300), (64, 48), (1024, 15), (1024, 4096), (100, 16, 10, 10)],
    ids=str,
)
def test_columns_are_met_alike(device: str, shape: tuple[int, ...]) -> None:
    """However long the rows are beside the stretches that the tensor is cut into."""
    for dim in range(1, len(shape)):
        columns = torch.linspace(-7, 7, shape[dim], dtype=torch.float64)
        place = columns.reshape([-1] + [1] * (len(shape) - dim - 1)).expand(shape)
        counts = counted(place.contiguous().to(device), samples=1024)[1:ABOVE].cpu().double()
        bins = torch.linspace(-8, 8, BINS + 1)[:-1] + 1 / 32
        number = counts.sum()
        mean = (counts * bins).sum() / number
        deviation = ((counts * (bins - mean) ** 2).sum() / number).sqrt()
        assert number >= 1000
        assert mean.abs() < 4 * columns.std() / number.sqrt()
        assert (deviation / columns.std(correction=0) - 1).abs() < 0.1


def test_native_and_composed_counts_agree() -> None:
    count = torch.ops.crrelu_ext.count_.default
    x = torch.randn(8, 5, 60, dtype=torch.float64)
    x[0, 0, :4] = torch.tensor([math.nan, math.inf, -math.inf, 1e300])
    for input in (x, x.float(), x.transpose(0, 2), x[:, :, ::2]):
        for channels, samples in ((1, 2**40), (5, 2**40), (5, 50), (1, 50)):
            place = torch.stack([torch.linspace(-1, 1, channels), torch.linspace(0.3, 2, channels)])
            native, composed = torch.zeros(2, channels, BINS + 3, dtype=torch.int64)
            count(input, place, samples, 1, native)
            count._op_dk(
                torch._C.DispatchKey.CompositeExplicitAutograd, input, place, samples, 1, composed
            )
            # Which elements a sample has depends on how they lie; all of them are all.
            if samples > input.numel() or input.is_contiguous():
                assert torch.equal(native, composed)
            assert native.sum() == composed.sum()


@pytest.mark.parametrize("samples", [50, 2**40])
def test_counts_with_gaps(device: str, dtype: torch.dtype, samples: int) -> None:
    """Those of a copy without gaps."""
    whole = 4 * torch.randn(6, 10, 300, device=device).to(dtype)
    for part in (
        whole[:, :, :150],
        whole[:, 2:7],
        whole[:, :, ::3],
        whole[:, :1].expand(6, 5, 300),
    ):
        for channels in (1, part.shape[1]):
            scales = torch.linspace(0.3, 2, channels, device=device)
            place = torch.stack([scales - 1, scales])
            counts, of_copy = (
                torch.zeros(channels, BINS + 3, dtype=torch.int64, device=device) for _ in range(2)
            )
            torch.ops.crrelu_ext.count_(part, place, samples, 1, counts)
            torch.ops.crrelu_ext.count_(part.contiguous(), place, samples, 1, of_copy)
            assert torch.equal(counts, of_copy)
            assert counts.sum() > 0


def test_counting_copies_nothing() -> None:
    part, place = torch.randn(500, 600)[:, :300], torch.tensor([[0.0], [1.0]])
    counts = torch.zeros(1, BINS + 3, dtype=torch.int64)
    count = torch.ops.crrelu_ext.count_
    assert allocated_bytes(lambda: count(part, place, 1000, 1, counts)) < 1000


def test_counts_by_channel(device: str, dtype: torch.dtype) -> None:
    x = torch.randn(6, 4, 5, 7, device=device).to(dtype)
    place = torch.tensor([[0.0, 1.0, -1.0, 0.2], [1.0, 0.5, 2.0, 0.1]], device=device)
    for input in (x, x.to(memory_format=torch.channels_last), x[:, :, ::2]):
        counts = torch.zeros(4, BINS + 3, dtype=torch.int64, device=device)
        torch.ops.crrelu_ext.count_(input, place, 2**40, 1, counts)
        for c in range(4):
            expected = counted(input[:, c], place[0, c].item(), place[1, c].item())
            assert torch.equal(counts[c], expected)
    few = torch.zeros(4, BINS + 3, dtype=torch.int64, device=device)
    torch.ops.crrelu_ext.count_(x, place, 1, 1, few)  # of each channel some
    assert (few.sum(-1) >= 4).all()
    assert (few.sum(-1) <= 8).all()


@pytest.mark.parametrize(
    ("place", "samples", "counts", "match"),
    [
        (torch.zeros(2), 1, (1, BINS + 3), "place has shape"),
        (torch.zeros(2, 1), 0, (1, BINS + 3), "samples is 0; allowed are 1 and more"),
        (torch.zeros(2, 1), 1, (1, BINS), "counts has shape"),
        (torch.zeros(2, 3), 1, (1, BINS + 3), "counts has shape"),
        (torch.zeros(2, 4), 1, (4, BINS + 3), "place has 4 channels, but input has size 3"),
    ],
)
def test_bad_counts(place: Tensor, samples: int, counts: tuple[int, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        torch.ops.crrelu_ext.count_(
            torch.zeros(3), place, samples, 0, torch.zeros(counts, dtype=torch.int64)
        )


def test_opcheck_of_counting() -> None:
    counts, place = torch.zeros(2, BINS + 3, dtype=torch.int64), torch.ones(2, 2)
    arguments = (torch.randn(30, 2), place, 10, 1, counts)
    torch.library.opcheck(torch.ops.crrelu_ext.count_.default, arguments)


def test_it_measures_in_training_alone() -> None:
    act, x = DynamicActivation(samples=50), torch.randn(50, requires_grad=True)
    act.eval()(x)
    assert act.histogram.counts.sum() == 0
    act.train()
    for accumulated in (1, 2, 3):
        act(x).sum().backward()
        assert act.histogram.counts.sum() == 50 * accumulated


@pytest.mark.parametrize("place", [(0.0, 0.0), (math.nan, 1.0), (0.0, math.nan), (math.inf, 1.0)])
def test_a_place_that_is_none(device: str, place: tuple[float, float]) -> None:
    """As memory that was never written may hold: what is counted says nothing, and stays inside."""
    x = torch.randn(1000, device=device)
    x[0] = math.nan
    where = torch.tensor(place, device=device)[:, None]
    counts = torch.zeros(1, BINS + 3, dtype=torch.int64, device=device)
    torch.ops.crrelu_ext.count_(x, where, 2000, 0, counts)
    assert counts.sum() == 1000
    assert counts[0, NOT_FINITE] == 1


@pytest.mark.parametrize("make", [DynamicActivation, lambda: DynamicCRReLU(3, channel_dim=2)])
def test_nested_inputs_are_measured(make: Any) -> None:
    act = make()
    parts = [torch.randn(n, 3) for n in (20, 50)]
    output = act(torch.nested.nested_tensor(parts, layout=torch.jagged))
    assert act.histogram.counts.sum() == 70 * 3
    for part, expected in zip(output.unbind(), parts, strict=True):
        torch.testing.assert_close(part, act(expected[None])[0])


def test_examples_are_measured_together() -> None:
    """As torch.func computes gradients by example."""
    act, per_channel, x = DynamicActivation(), DynamicCRReLU(3, channel_dim=0), torch.randn(4, 3, 5)
    expected = counted(x)
    gradients = torch.func.vmap(torch.func.grad(lambda x: act(x).sum()))(x)
    torch.testing.assert_close(gradients, torch.func.grad(lambda x: act.eval()(x).sum())(x))
    assert torch.equal(act.histogram.counts[0], expected)
    for in_dim in range(3):
        torch.func.vmap(torch.func.vmap(per_channel, in_dims=1), in_dims=in_dim, out_dims=in_dim)(
            x.movedim(0, in_dim)
        )
    assert torch.equal(per_channel.histogram.counts.sum(0), 3 * expected)
    assert (per_channel.histogram.counts.sum(-1) == 3 * 20).all()


def test_an_ensemble_under_vmap_is_not_measured() -> None:
    layers = [DynamicActivation(), DynamicActivation()]
    parameters, buffers = torch.func.stack_module_state(layers)
    outputs = torch.func.vmap(partial(torch.func.functional_call, layers[0]), in_dims=(0, None))(
        {**parameters, **buffers}, (torch.randn(20),)
    )
    assert outputs.shape == (2, 20)
    assert layers[0].histogram.counts.sum() == 0


def test_bad_input_is_refused_in_the_name_of_the_layer() -> None:
    for layer, match in ((DynamicActivation(), "tabulated: input"), (DynamicCRReLU(), "crrelu_at")):
        for bad in ("x", torch.arange(3), torch.ones(3).to_sparse()):
            with pytest.raises((TypeError, ValueError), match=match):
                layer(bad)
        assert layer.histogram.counts.sum() == 0


@pytest.mark.parametrize("how", ["reentrant", "not reentrant", "compiled", "of a compiled one"])
@pytest.mark.parametrize("make", [DynamicActivation, DynamicCRReLU])
def test_checkpointed_elements_are_counted_once(make: Any, how: str) -> None:
    act = make(samples=50)
    x = torch.randn(50, requires_grad=True)

    inner = torch.compile(act, backend="aot_eager") if how == "of a compiled one" else act

    def checkpointed(x: Tensor) -> Tensor:
        return checkpoint(inner, x, use_reentrant=how == "reentrant")

    call = torch.compile(checkpointed, backend="aot_eager") if how == "compiled" else checkpointed
    for number in (1, 2):
        call(x).sum().backward()
        assert x.grad is not None
        assert act.histogram.counts.sum() == 50 * number


@pytest.mark.parametrize(
    ("step_size", "functions", "moves"), [(0.02, None, 5e-3), (0.02, 8, 5e-3), (0.2, 8, 5e-2)]
)
def test_the_static_engine_derives_the_same(
    step_size: float, functions: int | None, moves: float
) -> None:
    """N updates on a density that stays as it is, beside N steps of the engine.

    Along D itself while these are small; among the same functions while they are large, too.
    """
    density, steps = Normal(0.4, 1.7), 5
    stream = Streams([lambda x, scale: F.softplus(x)])
    x = quantiles(density)
    for _ in range(3):
        place = stream.location.item(), stream.scale.item()
        stream.absorb(counted(x, *place)[None], 0)
        stream.calibrate()
    stream.absorb(counted(x, stream.location.item(), stream.scale.item())[None], 0)
    edges = stream.location + stream.scale * (torch.arange(BINS + 1) / 16 - 8)
    updates = [stream.update(trust=1.0, step_size=step_size) for _ in range(steps)]
    assert [update.refusals for update in updates] == [[None]] * steps
    assert [update.step_size.item() for update in updates] == [step_size] * steps
    assert all((update.entropy_after < update.entropy_before).all() for update in updates)
    points = torch.linspace(0.4 - 5 * 1.7, 0.4 + 5 * 1.7, 1001, dtype=torch.float64)
    derived = tabulated(points, stream.tables(256)[0])
    for source in (density, eafo.HistogramDensity(edges, stream.masses[0])):
        engine = eafo.improve(
            F.softplus, source, steps=steps, step_size=step_size, functions=functions
        )
        assert len(engine.steps) == steps
        assert (derived - engine.activation(points)).abs().max() < 1e-3 * 1.7
        assert (engine.activation(points) - F.softplus(points)).abs().max() > moves * 1.7


def test_it_does_not_stop_by_itself() -> None:
    """Every one of many updates is a step down, and keeps the slope above a part of the first."""
    act = DynamicActivation()
    scheduler = ActivationScheduler(act, every=2, warmup=8, total=400, trust=0.02)
    train(scheduler, {act: Normal(0.3, 1.0)}, 398)
    (history,) = scheduler.history.values()
    assert len(history) == 195
    assert all(falls(update) for update in history)
    entropies = history[0].entropy_before, history[-1].entropy
    assert entropies[0] is not None
    assert entropies[1] is not None
    assert entropies[0] - entropies[1] > 0.5
    x = torch.linspace(-4, 4, 400, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(act.start(x, act.histogram.place[1].double()).sum(), x)
    (last,) = torch.autograd.grad(act.double()(x).sum(), x)
    assert 0.15 < (last / first).min() < 0.3  # 0.2, but for the table's interpolation


@pytest.mark.parametrize("start", [F.softplus, F.elu, torch.exp])
def test_it_goes_on_where_the_slope_falls_off_fast(start: Any) -> None:
    """The function is kept as a spline, which must not be less accurate than its slope is small."""
    act = DynamicActivation(start)
    scheduler = ActivationScheduler(act, every=2, warmup=8, total=10_000, trust=0.01)
    train(scheduler, {act: Normal(0.0, 4.0)}, 128)
    (history,) = scheduler.history.values()
    assert sum(update.refusal is None for update in history) > 50


@pytest.mark.parametrize("start", [torch.exp, torch.sinh, lambda x: (x + 9).log()])
def test_it_follows_to_where_the_start_is_not_finite(start: Any) -> None:
    act = DynamicActivation(start)
    scheduler = ActivationScheduler(act, every=2, warmup=8, total=400)
    for step in range(150):
        scale = 0.5 * min(1.1 ** max(step - 20, 0), 400.0)
        assert act(scale * torch.randn(2000)).isfinite().all()
        scheduler.step()
    assert act.histogram.place[1] > 10


def test_it_finds_its_input_and_lowers_the_entropy() -> None:
    inputs = {DynamicActivation(): Normal(*n) for n in ((0.0, 1.0), (-3.0, 0.05), (40.0, 300.0))}
    scheduler = ActivationScheduler(
        nn.ModuleList(list(inputs)), every=5, warmup=16, total=200, trust=0.02
    )
    train(scheduler, inputs, 60)
    for (layer, density), history in zip(inputs.items(), scheduler.history.values(), strict=True):
        assert len(history) == 8
        assert abs(layer.histogram.place[0] - density.mean) < 0.1 * density.stddev
        assert 0.9 < layer.histogram.place[1] / density.stddev < 1.1
        accepted = [update for update in history if update.refusal is None]
        assert len(accepted) >= 4
        assert all(falls(update) for update in accepted)
        assert (layer.table[1].diff() > 0).all()


def test_it_follows_its_input() -> None:
    act = DynamicActivation()
    scheduler = ActivationScheduler(act, every=5, warmup=16, total=10_000, forgetting=0.5)
    train(scheduler, {act: Normal(0.0, 1.0)}, 40)
    x = torch.linspace(-2.5, 2.5, 100)
    before = act(x)
    train(scheduler, {act: Normal(3.0, 4.0)}, 100)
    (history,) = scheduler.history.values()
    assert abs(history[-1].location - 3) < 1.1
    assert 3 < history[-1].scale < 5
    assert (act(x) - before).abs().max() < 0.01 * 4 * len(history)  # it was carried over


def test_trust_bounds_every_change_and_ends() -> None:
    act = DynamicActivation()
    scheduler = ActivationScheduler(act, every=4, warmup=8, total=40, trust=0.003)
    density = Normal(0.0, 1.0)
    train(scheduler, {act: density}, 8)
    for _ in range(12):
        before, place = act.table.clone(), act.histogram.place.clone()
        left = 0.003 * (1 - (scheduler.steps + 4) / 40)
        train(scheduler, {act: density}, 4)
        if torch.equal(place, act.histogram.place):
            change = (act.table[1] - before[1]).abs().max()
            assert change <= max(left, 0) * place[1] * 1.001 + 1e-6
    final = act.table.clone()
    train(scheduler, {act: Normal(5.0, 3.0)}, 40)
    assert torch.equal(act.table, final)


def test_what_is_not_finite_stays_outside() -> None:
    act = DynamicActivation(samples=10**6)
    scheduler = ActivationScheduler(act, every=4, warmup=8, total=1000)
    for _ in range(40):
        x = torch.randn(3000)
        x[:30] = torch.tensor([math.nan, math.inf, -math.inf]).repeat(10)
        act(x)
        scheduler.step()
    (history,) = scheduler.history.values()
    assert history[-1].not_finite == 30 * 40
    assert any(update.refusal is None for update in history)
    assert act.table.isfinite().all()
    assert math.isfinite(history[-1].entropy or math.nan)


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0, 1e-9, 1e5, -1e30])
@pytest.mark.parametrize("make", [DynamicActivation, DynamicCRReLU])
def test_an_input_that_does_not_vary(make: Any, value: float) -> None:
    """As behind a layer that is dead, or not yet trained."""
    act = make()
    scheduler = ActivationScheduler(act, every=5, warmup=4, total=10**6, forgetting=0.5)
    for _ in range(300):
        assert act(torch.full((2000,), value)).isfinite().all()
        scheduler.step()
    (update, *_) = reversed(scheduler.history[""])
    assert max(2.0**-20, 2.0**-10 * abs(value)) <= 1.01 * update.scale
    if make is DynamicActivation:
        assert update.refusal == "the input does not vary"
    # It finds what comes then.
    x = value + max(1.0, abs(value) / 4) * torch.randn(2000)
    for _ in range(200):
        assert act(x).isfinite().all()
        scheduler.step()
    assert act.histogram.place[1] > 0.5 * x.std()


def slopes(act: DynamicActivation, reach: float) -> Tensor:
    x = torch.linspace(-reach, reach, 200, requires_grad=True)
    (slopes,) = torch.autograd.grad(act(x).sum(), x)
    return slopes


@pytest.mark.parametrize("pause", [3, 200])
def test_an_input_that_pauses_leaves_the_function(pause: int) -> None:
    act = DynamicActivation()
    scheduler = ActivationScheduler(act, every=5, warmup=8, total=10**6)
    train(scheduler, {act: Normal(0.0, 1.0)}, 48)
    table = act.table.clone()
    for _ in range(5 * pause):
        act(torch.zeros(2000))
        scheduler.step()
    assert torch.equal(act.table, table)
    (history,) = scheduler.history.values()
    assert {update.refusal for update in history[-pause:]} == {"the input does not vary"}
    train(scheduler, {act: Normal(0.0, 1.0)}, 5)
    assert history[-1].refusal is None
    assert 0.8 < history[-1].scale < 1.25
    assert slopes(act, 3).min() < 0.1
    assert slopes(act, 3).max() > 0.9


@pytest.mark.parametrize("growth", [20.0, 1000.0, 1.02])
def test_an_input_that_outgrows_the_function(growth: float) -> None:
    """At once, or slowly: it is begun anew, and goes on."""
    act = DynamicActivation()
    scheduler = ActivationScheduler(act, every=5, warmup=8, total=10**6, forgetting=0.5)
    train(scheduler, {act: Normal(0.0, 1.0)}, 48)
    scale = 1.0
    for _ in range(200):
        scale = growth if growth > 2 else scale * growth
        train(scheduler, {act: Normal(0.0, scale)}, 1)
    train(scheduler, {act: Normal(0.0, scale)}, 100)
    (history,) = scheduler.history.values()
    refusals = [update.refusal for update in history]
    assert "the input has outgrown the function, which begins anew" in refusals
    assert refusals[-10:].count(None) >= 8
    assert 0 < slopes(act, 3 * scale).min() < 0.1
    assert slopes(act, 3 * scale).max() > 0.9


def test_a_layer_in_eval_mode_stays() -> None:
    inputs = {DynamicActivation(): Normal(0.0, 1.0), DynamicActivation(): Normal(0.0, 1.0)}
    still, other = inputs
    scheduler = ActivationScheduler(nn.ModuleList(list(inputs)), every=5, warmup=8, total=10**6)
    train(scheduler, inputs, 48)
    tables = still.table.clone(), other.table.clone()
    still.eval()
    train(scheduler, inputs, 20)
    assert torch.equal(still.table, tables[0])
    assert not torch.equal(other.table, tables[1])
    assert {update.refusal for update in scheduler.history["0"][-4:]} == {"nothing was counted"}


@pytest.mark.parametrize("make", [DynamicActivation, DynamicCRReLU])
def test_another_scheduler_goes_on_with_a_trained_layer(make: Any) -> None:
    """As in fine-tuning, which begins with the model's state alone; whichever is made first."""
    density, x = Normal(3.0, 4.0), torch.linspace(-5, 11, 100)
    act = make()
    scheduler = ActivationScheduler(act, every=5, warmup=32, total=10_000, trust=0.05)
    train(scheduler, {act: density}, 200)
    act(torch.full((2000,), 1e6))  # counted, and not taken
    for loaded_first in (True, False):
        tuned = make()
        if loaded_first:
            tuned.load_state_dict(act.state_dict())
        scheduler = ActivationScheduler(tuned, every=5, warmup=32, total=10_000, trust=0.05)
        if not loaded_first:
            tuned.load_state_dict(act.state_dict())
        for _ in range(32):
            train(scheduler, {tuned: density}, 1)
            location, scale = tuned.histogram.place[:, 0]
            assert abs(location - 3) < 0.6
            assert 3.4 < scale < 4.6
            assert (tuned(x) - act(x)).abs().max() < 0.03
        train(scheduler, {tuned: density}, 10)
        (history,) = scheduler.history.values()
        assert [update.refusal for update in history] == [None, None]


def test_another_default_device() -> None:
    """What the scheduler computes stays on the CPU."""
    model, x = nn.Sequential(DynamicActivation(), DynamicCRReLU()), torch.randn(2000)
    try:
        torch.set_default_device("meta")
        scheduler = ActivationScheduler(model, every=2, warmup=4, total=100)
        for _ in range(20):
            model(x)
            scheduler.step()
    finally:
        torch.set_default_device(None)
    assert [history[-1].refusal for history in scheduler.history.values()] == [None, None]


def test_what_the_theory_refuses_leaves_the_function() -> None:
    act = DynamicActivation()
    scheduler = ActivationScheduler(act, every=4, warmup=8, total=1000)
    train(scheduler, {act: Normal(0.0, 1.0)}, 8)
    table = act.table.clone()
    for _ in range(4):
        scheduler.step()  # nothing was measured
    (history,) = scheduler.history.values()
    assert history[0].refusal == "nothing was counted"
    assert history[0].entropy is None
    assert scheduler.refusals == {"": 1}
    assert history[0].step_size == 0
    assert torch.equal(act.table, table)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(4, 16), DynamicActivation(), nn.Linear(16, 16), DynamicActivation(knots=100),
        nn.Linear(16, 16), DynamicCRReLU(), nn.Linear(16, 8), DynamicCRReLU(8), nn.Linear(8, 1),
    )  # fmt: skip


def fit(
    model: nn.Module,
    scheduler: ActivationScheduler,
    optimizer: Any,
    steps: range,
    rank: int = 0,
    ranks: int = 1,
) -> Tensor:
    """Trains on batches that depend on the step's number alone; returns the last loss."""
    loss = torch.zeros(())
    for step in steps:
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(step))
        x = x.chunk(ranks)[rank]
        loss = (model(x) - x.prod(-1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return loss.detach()


def start() -> tuple[nn.Module, ActivationScheduler, Any]:
    model = network()
    scheduler = ActivationScheduler(model, every=6, warmup=8, total=100)
    return model, scheduler, torch.optim.Adam(model.parameters(), 1e-2)


def test_a_resumed_run_is_bit_for_bit_the_same() -> None:
    model, scheduler, optimizer = start()
    expected = fit(model, scheduler, optimizer, range(50))
    broken, its_scheduler, its_optimizer = start()
    fit(broken, its_scheduler, its_optimizer, range(23))  # within an interval
    file = io.BytesIO()
    parts = (broken, its_scheduler, its_optimizer)
    torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    fresh = start()
    for part, state in zip(fresh, states, strict=True):
        part.load_state_dict(state)
    assert torch.equal(fit(*fresh, range(23, 50)), expected)
    for a, b in zip(model.state_dict().values(), fresh[0].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert fresh[1].history == scheduler.history
    assert any(update.refusal is None for h in scheduler.history.values() for update in h)


def two_ranks(rank: int, folder: Path) -> None:
    model, scheduler, optimizer = start()
    fit(DistributedDataParallel(model), scheduler, optimizer, range(40), rank, 2)
    torch.save([function_of(layer) for layer in scheduler.layers.values()], folder / f"{rank}.pt")


def function_of(layer: nn.Module) -> Tensor:
    """The buffer that an update replaces."""
    if isinstance(layer, DynamicActivation):
        return layer.table
    assert isinstance(layer, DynamicCRReLU)
    return layer.histogram.place


def test_two_processes_derive_the_same_bits(tmp_path: Path) -> None:
    in_processes(tmp_path, partial(two_ranks, folder=tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    model, scheduler, optimizer = start()
    fit(model, scheduler, optimizer, range(40))
    for a, b, layer in zip(first, second, scheduler.layers.values(), strict=True):
        assert torch.equal(a, b)
        # All elements of these batches are counted, so one process has nearly the same counts.
        assert (a[0] - function_of(layer)[0]).abs().max() < 0.2
    for a, fresh in zip(first, list(network())[1::2], strict=True):
        assert not torch.equal(a, function_of(fresh))


def test_it_starts_in_the_scale_of_its_input() -> None:
    act = DynamicActivation()
    scheduler = ActivationScheduler(act, every=5, warmup=16)
    train(scheduler, {act: Normal(0.0, 0.05)}, 16)
    x = torch.linspace(-0.2, 0.2, 100)
    expected = act.start(x.double(), act.histogram.place[1].double())
    assert (act(x) - expected).abs().max() < 0.05 * 0.01


def test_the_bins_move_at_an_eighth_of_the_warm_up() -> None:
    act = DynamicActivation()
    scheduler = ActivationScheduler(act, every=5, warmup=16)
    train(scheduler, {act: Normal(3.0, 2.0)}, 2)
    assert act.histogram.place.flatten().tolist() == pytest.approx([3, 2], rel=0.1)


@pytest.mark.filterwarnings("ignore:DerivedActivation. 9 knots:UserWarning")
def test_a_table_of_few_knots_rises() -> None:
    """A slope that is steep at a knot alone is cut down, as in any other table."""
    act = DynamicActivation(lambda x: x + 3 * torch.tanh(20 * x), knots=9)
    scheduler = ActivationScheduler(act, every=5, warmup=8)
    train(scheduler, {act: Normal(0.0, 1.0)}, 8)
    assert (act.eval()(torch.linspace(-10, 10, 4001)).diff() > 0).all()


def test_updates_tell_of_their_own_layer() -> None:
    layers = nn.ModuleList(
        [
            DynamicActivation(),
            DynamicActivation(knots=100),
            DynamicCRReLU(2, channel_dim=-1, samples=10**6),
        ]
    )
    layers[2].epsilon.data = torch.tensor([0.1, 0.3])
    scheduler = ActivationScheduler(layers, every=4, warmup=16, total=1000)
    for _ in range(20):
        layers[0](torch.randn(4096))
        layers[1](5 + 2 * torch.randn(4096))
        x = torch.stack([torch.randn(4096), 10 + 3 * torch.randn(4096)], -1)
        x[:3, 1] = math.nan
        layers[2](x)
        scheduler.step()
    for name, layer in scheduler.layers.items():
        (update,) = scheduler.history[name]
        location, scale = layer.histogram.place.mean(1).tolist()
        assert update.location == pytest.approx(location, abs=1e-5)
        assert update.scale == pytest.approx(scale, rel=1e-5)
    assert scheduler.history["2"][0].epsilon == pytest.approx(0.2)
    assert scheduler.history["2"][0].not_finite == 60


@pytest.mark.parametrize("make", [DynamicActivation, DynamicCRReLU])
def test_counts_follow_a_module_off_the_meta_device(make: Any) -> None:
    with torch.device("meta"):
        filled, assigned = make(), make()
    assert filled.histogram.counts.is_meta
    filled.to_empty(device="cpu")
    assigned.load_state_dict(make().state_dict(), assign=True)
    for layer in (filled, assigned):
        assert layer.histogram.counts.device.type == "cpu"
        assert layer.histogram.counts.sum() == 0


@pytest.mark.parametrize("make", [DynamicActivation, DynamicCRReLU])
def test_a_place_is_not_rounded_by_a_cast(make: Any) -> None:
    act = make()
    act.histogram.place.fill_(1 / 3)
    act.bfloat16()
    assert torch.equal(act.histogram.place, torch.full((2, 1), 1 / 3))


def test_reset_goes_back_to_its_own_start() -> None:
    act = DynamicActivation(F.softplus)
    expected = copy.deepcopy(act.state_dict())
    act.table.zero_()
    act.error.zero_()
    act.reset_parameters()
    for name in ("table", "error"):
        assert torch.equal(act.state_dict()[name], expected[name])


def test_a_start_that_does_not_rise_everywhere() -> None:
    with pytest.raises(ValueError, match="activation is not increasing from -8 to 8"):
        DynamicActivation(F.relu)


def test_no_recompilation_at_an_update() -> None:
    torch._dynamo.reset()
    act = DynamicActivation()
    scheduler = ActivationScheduler(act, every=4, warmup=8, total=100)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: act(x) * 2, fullgraph=True, backend=counter)
    for _ in range(21):
        x = torch.randn(500, requires_grad=True)
        output = compiled(x)
        output.sum().backward()
        torch.testing.assert_close(output, tabulated(x, act.table) * 2)
        scheduler.step()
    assert counter.frame_count == 1
    assert act.histogram.counts.sum() == 500  # since the update before the last step
    assert len(scheduler.history[""]) == 3


@pytest.mark.parametrize("kind", [DynamicActivation, DynamicCRReLU])
def test_mixed_precision_and_copies(kind: Any) -> None:
    act = kind()
    act(torch.randn(4096))
    with torch.autocast("cpu", torch.bfloat16):
        assert act(torch.randn(4096, dtype=torch.bfloat16)).dtype == torch.bfloat16
    for other in (copy.deepcopy(act), pickle.loads(pickle.dumps(act))):
        assert torch.equal(other.histogram.counts, act.histogram.counts)
        assert torch.equal(function_of(other), function_of(act))
    act.bfloat16()
    assert act.histogram.place.dtype == function_of(act).dtype == torch.float32
    assert act.histogram.counts.dtype == torch.int64
    own = ["table", "error"] if kind is DynamicActivation else ["epsilon"]
    assert list(act.state_dict()) == [*own, "histogram.place"]


def test_other_starts() -> None:
    for start in (F.softplus, torch.tanh, torch.sinh):
        act = DynamicActivation(start)
        scheduler = ActivationScheduler(act, every=4, warmup=8, total=100)
        train(scheduler, {act: Normal(0.5, 0.5)}, 8)
        x = torch.linspace(-1, 2, 50)
        assert (act(x) - start(x)).abs().max() < 2e-3
    with pytest.raises(ValueError, match="not increasing"):
        DynamicActivation(F.silu)


@pytest.mark.parametrize("make", [DynamicActivation, DynamicCRReLU])
def test_made_without_memory(make: Any) -> None:
    """The counts are in no state: they begin at zero, on the device of what is loaded."""
    x, state = torch.randn(3, 4), make().state_dict()
    with torch.device("meta"):
        filled, assigned, reset = make(), make(), make()
    filled.to_empty(device="cpu").load_state_dict(state)
    assigned.load_state_dict(state, assign=True)
    for module in reset.to_empty(device="cpu").modules():
        module.reset_parameters()
    expected = make()(x)
    for layer in (filled, assigned, reset):
        assert torch.equal(layer(x), expected)
        assert layer.histogram.counts.sum() == 12


@pytest.mark.parametrize("make", [DynamicActivation, DynamicCRReLU])
def test_any_default_dtype_and_cast(make: Any) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        layer = make()
    finally:
        torch.set_default_dtype(torch.float32)
    layer(torch.randn(5, dtype=torch.float64))
    layer.type(torch.float16)(torch.randn(5).half())
    assert layer.histogram.counts.sum() == 10


@pytest.mark.parametrize("make", [DynamicActivation, DynamicCRReLU])
def test_traced_by_fx(make: Any) -> None:
    x = torch.randn(5)
    assert torch.equal(torch.fx.symbolic_trace(nn.Sequential(make()))(x), make()(x))


def sharded(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,))
    layers = DynamicActivation(), DynamicCRReLU()
    model = nn.ModuleList(layers)
    scheduler = ActivationScheduler(model, every=4, warmup=4)
    distribute_module(model, mesh)
    for _ in range(8):
        x = distribute_tensor(torch.randn(1000, 3), mesh, [Shard(0)])
        for layer in layers:
            assert torch.isfinite(layer(x).to_local()).all()
            assert layer.histogram.counts.sum() > 400
        scheduler.step()
    assert scheduler.refusals == {"0": 0, "1": 0}


def test_distributed_tensors(tmp_path: Path) -> None:
    in_processes(tmp_path, sharded)


def test_a_start_is_no_part_of_the_network() -> None:
    act = DynamicActivation(nn.PReLU(init=0.25).double())
    assert not list(act.parameters())
    assert list(act.state_dict()) == ["table", "error", "histogram.place"]
    model = nn.Sequential(DynamicActivation(nn.Softplus()))
    assert replace_activation(model, nn.Softplus, nn.ReLU) == {}
    x, scale = torch.randn(9, dtype=torch.float64), torch.ones(())
    copied = pickle.loads(pickle.dumps(act))
    assert torch.equal(copied.start(x, scale), act.start(x, scale))


def test_it_takes_the_place_of_another() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 3), nn.GELU())
    assert len(replace_activation(model, nn.GELU, DynamicActivation)) == 2
    assert list(ActivationScheduler(model).layers) == ["1", "3"]


def test_history_is_drawn(tmp_path: Path) -> None:
    model, scheduler, optimizer = start()
    with pytest.raises(ValueError, match="no history yet"):
        plot_history(scheduler, tmp_path / "history.png")
    fit(model, scheduler, optimizer, range(30))
    plot_history(scheduler, tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")


class Recorder:
    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars.append((tag, scalar_value, global_step))


def test_tensorboard() -> None:
    act, writer = DynamicActivation(), Recorder()
    scheduler = ActivationScheduler(act, every=4, warmup=8, total=100, writer=writer)
    train(scheduler, {act: Normal(0.0, 1.0)}, 12)
    (history,) = scheduler.history.values()
    assert ("activation//entropy", history[0].entropy, 12) in writer.scalars


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"every": 0}, "every is 0; allowed are whole numbers from 1 on"),
        ({"total": 1.5}, "total is 1.5; allowed are whole numbers from 1 on"),
        ({"total": 99}, "total is 99; allowed are numbers from warmup, 100, on"),
        ({"warmup": 3}, "warmup is 3; allowed are whole numbers from 4 on"),
        ({"trust": 0.0}, "trust is 0.0; allowed are positive"),
        ({"trust": "x"}, "trust is 'x'; allowed are positive"),
        ({"trust": math.inf}, "trust is inf; allowed are positive, finite numbers"),
        ({"step_size": -1.0}, "step_size is -1.0; allowed are positive"),
        ({"forgetting": 2}, "forgetting is 2; allowed are numbers from 0 to 1"),
        ({"forgetting": None}, "forgetting is None; allowed"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ActivationScheduler(DynamicActivation(), **arguments)
    with pytest.raises(ValueError, match="model has no DynamicActivation"):
        ActivationScheduler(nn.Sequential(CRReLU()))
    for samples in (0, 1.5):
        with pytest.raises(ValueError, match=f"samples is {samples}; allowed are 1, 2, 3"):
            DynamicActivation(samples=samples)  # type: ignore[arg-type]


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("crrelu_ext.eafo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        ActivationScheduler(nn.Sequential(DynamicCRReLU()))


def test_a_model_over_several_devices(device: str) -> None:
    """As pipelines have them: the counts meet on the first layer's."""
    layers = nn.ModuleList([DynamicActivation(), DynamicActivation().to(device)])
    scheduler = ActivationScheduler(layers, every=4, warmup=4)
    for _ in range(8):
        layers[0](torch.randn(1000))
        layers[1](torch.randn(1000, device=device))
        scheduler.step()
    assert scheduler.refusals == {"0": 0, "1": 0}


def test_without_native_kernels_nothing_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crrelu_ext.scheduler.native", False)
    with pytest.raises(RuntimeError, match="only the native kernels measure"):
        ActivationScheduler(DynamicActivation())


def test_a_state_of_other_layers_is_refused() -> None:
    _, scheduler, _ = start()
    other = ActivationScheduler(DynamicActivation())
    with pytest.raises(ValueError, match=r"state has kinds {: DynamicActivation}; allowed is"):
        scheduler.load_state_dict(other.state_dict())
    of_another_kind = ActivationScheduler(DynamicCRReLU())
    with pytest.raises(ValueError, match=r"DynamicActivation.* allowed .*DynamicCRReLU"):
        of_another_kind.load_state_dict(other.state_dict())


def without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no dictionary": (lambda state: None, "state has kinds NoneType; allowed is what state_dict"),
    "nothing": (lambda state: {}, "state has kinds NoneType"),
    "no tables": (lambda state: without(state, "tables"), "tables NoneType; .*values: "),
    "a tensor less": (
        lambda state: state | {"tables": without(state["tables"], "values")},
        r"state has tables {location: .*first_values: \(2, 257\).*}; allowed .*, values: ",
    ),
    "another grid": (
        lambda state: state | {"tables": state["tables"] | {"values": torch.zeros(2, 9)}},
        r"values: \(2, 9\).* with .*values: \(2, 257\)",
    ),
    "no counts": (lambda state: state | {"counts": {}}, "state has counts {}; allowed"),
    "no steps": (lambda state: without(state, "steps"), "state has steps NoneType; .* with int"),
    "no history": (lambda state: without(state, "history"), "state has a history that is none"),
    "a layer less": (
        lambda state: state | {"history": without(state["history"], "0")},
        r"state has a history of \['1'\]; allowed is one of \['0', '1'\]",
    ),
    "no update": (
        lambda state: state | {"history": state["history"] | {"1": [{"more": 1}]}},
        "state has a history that is none: .*'more'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_state_is_refused(name: str) -> None:
    """And changes nothing."""
    broken, message = BROKEN[name]
    layers = nn.ModuleList([DynamicActivation(), DynamicActivation()])
    scheduler = ActivationScheduler(layers, every=4, warmup=4)
    for layer in (*layers,) * 8:
        layer(torch.randn(1000))
        scheduler.step()
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match=message):
        scheduler.load_state_dict(broken(ActivationScheduler(layers).state_dict()))
    after = scheduler.state_dict()
    assert after["steps"] == before["steps"] == 16
    assert after["history"] == before["history"]
    for part in ("tables", "counts"):
        for key, value in before[part].items():
            assert torch.equal(after[part][key], value)
