"""DynamicCRReLU: the bump goes to where the input is. What it shares with DynamicActivation
(resuming, several processes, pictures) is tested beside that, in test_dynamic.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributions import Normal

from crrelu_ext import ActivationScheduler, CRReLU, DynamicActivation, DynamicCRReLU, reference
from crrelu_ext.dynamic import BINS, NOT_FINITE
from crrelu_ext.placing import Places, sample
from crrelu_ext.updates import Update

from .test_distributed import in_processes

LOCATIONS, SCALES = torch.tensor([0.0, -3.0, 40.0]), torch.tensor([1.0, 0.05, 300.0])


def train(scheduler: ActivationScheduler, act: nn.Module, density: Normal, steps: int) -> None:
    for _ in range(steps):
        act(density.sample((1000,)))
        scheduler.step()


def test_each_channel_finds_its_place() -> None:
    act = DynamicCRReLU(3, channel_dim=-1)
    assert torch.equal(act(torch.ones(2, 3)), CRReLU(3)(torch.ones(2, 3)))  # nothing measured yet
    scheduler = ActivationScheduler(act, every=5, warmup=40, total=1000)
    train(scheduler, act, Normal(LOCATIONS, SCALES), 100)
    place = act.histogram.place
    assert ((place[0] - LOCATIONS).abs() < 0.05 * SCALES).all()
    assert ((place[1] / SCALES).log().abs() < 0.05).all()
    x = LOCATIONS + SCALES * torch.randn(50, 3)
    torch.testing.assert_close(act(x), reference.crrelu_at(x, act.epsilon, place))
    (history,) = scheduler.history.values()
    assert len(history) == 12
    assert scheduler.refusals == {"": 0}
    assert all(math.isfinite(update.entropy or math.nan) for update in history)
    assert history[-1].epsilon == pytest.approx(0.01)
    assert history[-1].location == pytest.approx(place[0].mean().item())


def test_it_follows_its_input() -> None:
    act = DynamicCRReLU()
    scheduler = ActivationScheduler(act, every=5, warmup=16, total=10_000, forgetting=0.5)
    density = Normal(torch.zeros(1), torch.ones(1))
    train(scheduler, act, density, 40)
    train(scheduler, act, Normal(density.loc + 3, density.scale * 4), 100)
    location, scale = act.histogram.place.flatten().tolist()
    assert location == pytest.approx(3, abs=0.4)
    assert scale == pytest.approx(4, rel=0.1)


def test_the_entropy_is_that_of_the_output() -> None:
    """Of one that increases strictly where the input is: by the change of variable."""
    act = DynamicCRReLU(init=0.2)
    scheduler = ActivationScheduler(act, every=4, warmup=8, total=1000)
    train(scheduler, act, Normal(torch.full((1,), 6.0), torch.ones(1)), 12)
    ((update,),) = scheduler.history.values()
    x = Normal(6.0, 1.0).sample((200_000,)).double().requires_grad_()
    place = act.histogram.place
    y = reference.crrelu_at(x, act.epsilon.detach(), place)
    (slope,) = torch.autograd.grad(y.sum(), x)
    exact = Normal(6.0, 1.0).entropy() + slope.log().mean()
    assert update.entropy == pytest.approx(exact.item(), abs=0.05)


def sharded(rank: int) -> None:
    """Each rank has half of the input and half of the epsilons."""
    act = DynamicCRReLU(4)
    fully_shard(act, mesh=init_device_mesh("cpu", (2,)))
    scheduler = ActivationScheduler(act, every=4, warmup=8, total=100)
    for _ in range(16):
        act((torch.randn(200, 4) + 3).chunk(2)[rank]).sum().backward()
        scheduler.step()
    assert isinstance(act.epsilon, DTensor)
    (history,) = scheduler.history.values()
    assert history[-1].epsilon == pytest.approx(0.01)
    assert ((act.histogram.place[0] - 3).abs() < 0.2).all()


def test_sharded_parameters(tmp_path: Path) -> None:
    in_processes(tmp_path, sharded)


def test_epsilon_learns_and_the_place_does_not() -> None:
    act = DynamicCRReLU(2)
    act(torch.randn(50, 2)).square().sum().backward()
    assert act.epsilon.grad is not None
    assert act.epsilon.grad.abs().min() > 0
    assert [name for name, _ in act.named_parameters()] == ["epsilon"]


def test_what_is_not_finite_stays_outside() -> None:
    act = DynamicCRReLU(samples=10**6)
    scheduler = ActivationScheduler(act, every=4, warmup=8, total=1000)
    for _ in range(20):
        x = torch.randn(3000)
        x[:30] = torch.tensor([math.nan, math.inf, -math.inf]).repeat(10)
        act(x)
        scheduler.step()
    (history,) = scheduler.history.values()
    assert history[-1].not_finite == 30 * 20
    assert act.histogram.place.isfinite().all()


def test_where_nothing_is_measured_the_place_stays() -> None:
    act = DynamicCRReLU()
    scheduler = ActivationScheduler(act, every=4, warmup=8, total=1000)
    train(scheduler, act, Normal(torch.full((1,), 2.0), torch.ones(1)), 8)
    place = act.histogram.place.clone()
    for _ in range(4):
        scheduler.step()
    (history,) = scheduler.history.values()
    assert history[0].refusal == "too little of the input was measured"
    assert history[0].entropy is None
    assert torch.equal(act.histogram.place, place)


def test_wide_inputs_are_reached() -> None:
    """From bins that hold a thousandth of the input, by factors of eight."""
    places = Places(1)
    density = Normal(500.0, 3000.0)
    for _ in range(8):
        counts = torch.zeros(1, BINS + 3, dtype=torch.int64)
        place = torch.stack([places.location, places.scale]).float()
        torch.ops.crrelu_ext.count_(density.sample((20_000,)), place, 2**40, 0, counts)
        places.follow(counts.double(), 0.0)
    assert places.location.item() == pytest.approx(500, abs=100)
    assert places.scale.item() == pytest.approx(3000, rel=0.03)
    assert counts[0, NOT_FINITE] == 0


@pytest.mark.parametrize("kind", [DynamicActivation, DynamicCRReLU])
def test_inputs_near_the_largest_number(kind: type[nn.Module]) -> None:
    """Bins and tables stop short of them: a knot at infinity would make every output NaN."""
    act = kind()
    scheduler = ActivationScheduler(act, every=1, warmup=4)
    for _ in range(50):
        assert act(torch.rand(1000) * 3e38).isfinite().all()
        scheduler.step()


def test_joined_moments_are_those_of_all_elements() -> None:
    """Two measurements, none forgotten, beside one of all elements together."""
    parts = [torch.randn(3000, dtype=torch.float64), torch.randn(1000, dtype=torch.float64) * 2 + 1]
    places = Places(1)
    for part in parts:
        counts = torch.zeros(1, BINS + 3, dtype=torch.int64)
        place = torch.stack([places.location, places.scale]).float()
        torch.ops.crrelu_ext.count_(part, place, 2**40, 0, counts)
        places.follow(counts.double(), 1.0)
    together = torch.cat(parts)
    assert places.location.item() == pytest.approx(together.mean().item(), abs=0.01)
    assert places.scale.item() == pytest.approx(together.std().item(), rel=0.01)


def test_a_sample_is_the_quantiles() -> None:
    def counted(x: Tensor, place: Tensor) -> Tensor:
        counts = torch.zeros(place.shape[1], BINS + 3, dtype=torch.int64)
        torch.ops.crrelu_ext.count_(x, place, 2**40, 1, counts)
        return counts[:, 1:-2].double()

    place = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    x = 1 + 2 * torch.randn(100_000, 2)
    x[:, 1] = 100.0  # nothing within the second channel's bins
    drawn = sample(counted(x, place), place)
    levels = (torch.arange(512, dtype=torch.float64) + 0.5) / 512
    exact = Normal(1.0, 2.0).icdf(levels)
    assert (drawn[0] - exact)[16:-16].abs().max() < 0.05
    assert drawn[1].isnan().all()


def test_kinds_do_not_mix_in_a_state() -> None:
    scheduler = ActivationScheduler(DynamicCRReLU())
    with pytest.raises(ValueError, match="state has kinds"):
        scheduler.load_state_dict(ActivationScheduler(DynamicActivation()).state_dict())
    with pytest.raises(ValueError, match="state has counts"):
        scheduler.load_state_dict(ActivationScheduler(DynamicCRReLU(2)).state_dict())


def test_all_is_kept_where_nothing_is_forgotten() -> None:
    act = DynamicCRReLU()
    scheduler = ActivationScheduler(act, every=4, warmup=16, forgetting=0.0)
    for step in range(220):
        act(torch.randn(4096) + 2 * (step >= 216))
        scheduler.step()
    assert act.histogram.place[0].item() < 0.5


def test_entropies_are_those_before_and_after() -> None:
    act = DynamicCRReLU(init=0.2)
    scheduler = ActivationScheduler(act, every=4, warmup=8, total=1000, forgetting=1.0)
    for step in range(12):
        if step == 8:
            before = act.histogram.place.clone()
        act(torch.randn(4096) + (6 if step < 8 else 8))
        scheduler.step()
    (update,) = scheduler.history[""]
    density = Normal(8.0, 1.0)
    x = density.sample((200_000,)).double().requires_grad_()
    for place, measured in ((before, update.entropy_before), (act.histogram.place, update.entropy)):
        output = reference.crrelu_at(x, act.epsilon.detach(), place)
        (slope,) = torch.autograd.grad(output.sum(), x)
        exact = density.entropy() + slope.log().mean()
        assert measured == pytest.approx(exact.item(), abs=0.06)
    assert update.entropy is not None
    assert update.entropy_before is not None
    assert abs(update.entropy - update.entropy_before) > 0.02


def last_update(act: DynamicCRReLU, make: Callable[[], Tensor]) -> Update:
    scheduler = ActivationScheduler(act, every=4, warmup=4, total=1000)
    for _ in range(8):
        act(make())
        scheduler.step()
    return scheduler.history[""][-1]


def test_a_channel_of_nan_beside_a_good_one() -> None:
    one_is_good = torch.tensor([1.0, math.nan])
    update = last_update(
        DynamicCRReLU(2, channel_dim=-1), lambda: torch.randn(500, 2) * one_is_good
    )
    assert update.refusal is None
    assert update.entropy is not None
    assert update.not_finite > 0


def test_entropies_of_many_channels() -> None:
    """Of some, that stand for all."""
    channels = 100
    update = last_update(
        DynamicCRReLU(channels, channel_dim=-1),
        lambda: 10 + torch.arange(float(channels)) + torch.randn(500, channels),
    )
    assert update.entropy == pytest.approx(Normal(0.0, 1.0).entropy().item(), abs=0.1)


def test_an_epsilon_of_16_bits() -> None:
    update = last_update(DynamicCRReLU().bfloat16(), lambda: torch.randn(500).bfloat16())
    assert update.entropy is not None


def test_an_output_that_does_not_vary_has_no_entropy() -> None:
    update = last_update(DynamicCRReLU(init=0.0), lambda: torch.full((500,), -3.0))
    assert update.entropy is None
