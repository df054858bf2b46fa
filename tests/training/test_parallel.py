"""Two processes with gloo train what one process trains."""

from __future__ import annotations

import multiprocessing
import os
import socket
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from benchmarks.training import results, study
from benchmarks.training.loop import Nobody
from benchmarks.training.processes import join
from benchmarks.training.recipe import cells

from .small import ALONE, VIT, outcome, run_study

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without distributed"
)
STUDY: dict[str, Any] = {
    **VIT,
    "model_args": {**VIT["model_args"], "dropout": 0.0},
    "accumulation": 2,
    "checkpoint_every": 3,
    "activation": "crrelu-channel",
}
LAYER = "encoder.layers.0.activation"


class Stop(BaseException):
    pass


class Stopper(Nobody):
    def step(self, epoch: int, step: int, steps: int, loss: float, rate: float) -> None:
        if epoch == 1 and step == steps:
            raise Stop


def process(rank: int, port: int, folder: Path, request: dict[str, Any], stop: bool) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    with join("cpu") as processes:
        uneven = list(processes.in_step(range(rank + 1)))
        assert uneven == [(0, True), (0, False)] if rank == 0 else [(0, True), (1, True)]
        watch = Stopper() if stop else Nobody()
        try:
            for _ in study.run(folder, cells(request), processes, lambda *_: watch):
                pass
        except Stop:
            assert stop


def in_two_processes(folder: Path, request: dict[str, Any], *, stop: bool = False) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.test_parallel", "torch._dynamo"])
    arguments = (port, folder, request, stop)
    started = [context.Process(target=process, args=(rank, *arguments)) for rank in (0, 1)]
    for one in started:
        one.start()
    for one in started:
        one.join(timeout=300)
        assert one.exitcode == 0


def losses(folder: Path) -> list[float]:
    found = [
        x
        for result in results.read(folder)
        for epoch in result.epochs
        for x in (epoch.loss, epoch.metrics["loss"], *chain(*epoch.epsilons.values()))
    ]
    assert len(found) == 3 * (2 + 64)
    return found


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_as_in_one_process(tmp_path: Path, parallel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To rounding; and what two processes have begun, one can finish."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    run_study(tmp_path / "one", STUDY)
    request = {**STUDY, "parallel": parallel}
    in_two_processes(tmp_path / "two", request)
    expected = losses(tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert results.read(tmp_path / "two")[0].environment["processes"] == "2"

    in_two_processes(tmp_path / "both", request, stop=True)
    assert list((tmp_path / "both").rglob("checkpoint.pt"))
    run_study(tmp_path / "both", request)
    assert losses(tmp_path / "both") == pytest.approx(expected, rel=1e-3, abs=1e-4)
    weights = [
        torch.load(next((tmp_path / name).rglob("weights.pt")), weights_only=True)
        for name in ("one", "two", "both")
    ]
    assert weights[0].keys() == weights[1].keys() == weights[2].keys()


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_dynamic_activations(
    tmp_path: Path, parallel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that are stopped between updates go on with the counts of both."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    request = {**STUDY, "activation": "dynamic-eafo", "eafo_warmup": 4, "eafo_every": 3}
    request["parallel"] = parallel
    in_two_processes(tmp_path / "whole", request)
    in_two_processes(tmp_path / "stopped", request, stop=True)
    (file,) = (tmp_path / "stopped").rglob("checkpoint.pt")
    counts = torch.load(file, weights_only=True)["position"]["eafo"]["counts"]
    # After steps 5 and 6: two ranks, two parts of a batch, some thousand elements of each.
    assert all(7_000 < layer.sum() < 9_000 for layer in counts.values())
    in_two_processes(tmp_path / "stopped", request)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")
    (result,) = results.read(tmp_path / "whole")
    assert [update["step"] for epoch in result.epochs for update in epoch.updates[LAYER]] == [7, 10]


def test_batches_that_cannot_be_shared(tmp_path: Path) -> None:
    from benchmarks.training.build import build
    from benchmarks.training.processes import Processes

    three = Processes(ALONE.device, rank=0, world=3)
    (recipe,) = cells(STUDY)
    with pytest.raises(ValueError, match=r"multiples of 6, the processes \(3\) times accumulation"):
        build(recipe, three)


def test_blocks_are_sharded() -> None:
    from benchmarks.training.build import build
    from benchmarks.training.processes import _blocks

    (recipe,) = cells(STUDY)
    assert not isinstance(build(recipe, ALONE).model, FSDPModule)
    assert len(list(_blocks(build(recipe, ALONE).model))) == 2
