"""The controls of dynamic EAFO: steps of its size, in other directions."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from benchmarks.training import controls
from benchmarks.training.controls import Control
from crrelu_ext import ActivationScheduler, DynamicActivation

from ..test_dynamic import falls

Scheduler = TypeVar("Scheduler", bound=ActivationScheduler)
OPTIONS: dict[str, Any] = {"every": 4, "warmup": 8, "total": 200, "trust": 0.02}


def layers() -> nn.ModuleList:
    return nn.ModuleList([DynamicActivation(), DynamicActivation()])


def control(instead: controls.Instead, seed: int = 1, **changes: Any) -> Control:
    return Control(layers(), instead=instead, seed=seed, **{**OPTIONS, **changes})


def as_it_is(steps: Tensor, chance: torch.Generator) -> Tensor:
    return steps


def run(scheduler: Scheduler, steps: range) -> Scheduler:
    """On inputs that depend on the step's number alone."""
    for step in steps:
        x = torch.randn(2, 4096, generator=torch.Generator().manual_seed(step))
        for number, layer in enumerate(scheduler.layers.values()):
            layer(x[number] * (1 + number))
        scheduler.step()
    return scheduler


def first_steps(scheduler: Control) -> tuple[Tensor, Tensor]:
    """What the first update adds to the layers' functions, and its C."""
    before = run(scheduler, range(8)).streams.values.clone()
    added = run(scheduler, range(8, 12)).streams.values - before
    return added, torch.tensor([h[0].step_size for h in scheduler.history.values()])[:, None]


@pytest.fixture(scope="module")
def of_eafo() -> tuple[Tensor, Tensor]:
    added, size = first_steps(control(as_it_is))
    assert (size > 0).all()
    return added, size


def test_eafo_as_it_is() -> None:
    one = run(ActivationScheduler(layers(), **OPTIONS), range(40))
    other = run(control(as_it_is), range(40))
    for name, layer in one.layers.items():
        expected = layer.state_dict()
        for key, value in other.layers[name].state_dict().items():
            torch.testing.assert_close(value, expected[key])
        refusals = [update.refusal for update in one.history[name]]
        assert [update.refusal for update in other.history[name]] == refusals
        assert None in refusals


def test_the_opposite(of_eafo: tuple[Tensor, Tensor]) -> None:
    added, size = first_steps(scheduler := control(controls.opposite))
    assert torch.equal(size, of_eafo[1])
    torch.testing.assert_close(added, -of_eafo[0], rtol=1e-6, atol=1e-9)
    run(scheduler, range(12, 60))
    accepted = [u for h in scheduler.history.values() for u in h if u.refusal is None]
    assert len(accepted) > 4
    assert not any(map(falls, accepted))


def test_at_random(of_eafo: tuple[Tensor, Tensor]) -> None:
    added, size = first_steps(control(controls.random))
    assert torch.equal(size, of_eafo[1])
    largest, of_eafo_s = (a.abs().amax(-1, keepdim=True) for a in (added, of_eafo[0]))
    part = largest / of_eafo_s
    assert (part > 0.5).all()  # of the one that the floor made smaller
    assert part.amax().item() == pytest.approx(1)
    shapes = added / largest
    assert (shapes[0] - shapes[1]).abs().max() > 0.1  # another one for each layer
    assert shapes.diff(n=2).abs().max() < 0.05  # smooth
    again, _ = first_steps(control(controls.random))
    assert torch.equal(again, added)
    other, _ = first_steps(control(controls.random, seed=2))
    assert (other / added.abs().amax() - added / added.abs().amax()).abs().max() > 0.1


def steep(steps: Tensor, chance: torch.Generator) -> Tensor:
    """The last function alone, which falls steeply somewhere whatever its sign."""
    return torch.eye(steps.shape[-1], dtype=steps.dtype)[-1:].expand_as(steps)


@pytest.mark.parametrize("instead", [controls.opposite, controls.random, steep])
def test_functions_stay_increasing(instead: controls.Instead) -> None:
    scheduler = run(control(instead, every=1, total=100_000, trust=1.0), range(30))
    for name, layer in scheduler.layers.items():
        assert scheduler.history[name][0].refusal is None
        assert (layer.get_buffer("table")[1].diff() > 0).all()


def test_resumed() -> None:
    whole = run(control(controls.random), range(30))
    broken = run(control(controls.random), range(18))  # within an interval
    resumed = control(controls.random)
    resumed.load_state_dict(broken.state_dict())
    for name, layer in broken.layers.items():
        resumed.layers[name].load_state_dict(layer.state_dict())
    run(resumed, range(18, 30))
    assert torch.equal(resumed.streams.values, whole.streams.values)
    assert resumed.history == whole.history


def test_refused_steps_are_not_taken() -> None:
    scheduler = run(control(controls.random), range(8))
    before = scheduler.streams.values.clone()
    for _ in range(4):
        scheduler.step()  # nothing was measured
    assert torch.equal(scheduler.streams.values, before)
    for history in scheduler.history.values():
        assert history[0].refusal == "nothing was counted"
        assert history[0].step_size == 0
