"""Two processes on one machine: every training step and every gradient as in one process."""

# mypy: disable-error-code="attr-defined, union-attr, assignment"

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import crrelu_ext
from crrelu_ext import CRReLU, CRReLUMLP

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
WORLD = 2


def in_two_processes(check: Callable[..., None], folder: Path, *arguments: Any) -> None:
    mp.spawn(_process, (folder / "rendezvous", check, arguments), WORLD)


def _process(rank: int, rendezvous: Path, check: Callable[..., None], arguments: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous.as_uri(), rank=rank, world_size=WORLD)
    torch.manual_seed(0)
    check(rank, *arguments)
    dist.destroy_process_group()


def network() -> nn.Sequential:
    """Scalar and per-channel epsilons, and the block that computes its activation twice."""
    return nn.Sequential(
        nn.Linear(6, 10),
        CRReLU(init=-0.3),
        nn.Linear(10, 8),
        CRReLU(8, init=0.2, channel_dim=-1),
        CRReLUMLP(8, 12, 4, per_channel=True),
    )


def step(model: nn.Module, input: Tensor, target: Tensor) -> Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = nn.functional.mse_loss(model(input), target)
    loss.backward()
    optimizer.step()
    return loss.detach()


def data_parallel(rank: int, wrap: str) -> None:
    model, alone = network(), network()
    alone.load_state_dict(model.state_dict())
    input, target = torch.randn(8, 6), torch.randn(8, 4)
    step(alone, input, target)
    if wrap == "ddp":
        wrapped: nn.Module = DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (WORLD,))
        for layer in model:
            fully_shard(layer, mesh=mesh)
        wrapped = fully_shard(model, mesh=mesh)
    step(wrapped, input.chunk(WORLD)[rank], target.chunk(WORLD)[rank])
    for name, parameter in model.named_parameters():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        assert_close(whole, alone.get_parameter(name), msg=name)


@pytest.mark.parametrize("wrap", ["ddp", "fsdp2"])
def test_data_parallel(tmp_path: Path, wrap: str) -> None:
    in_two_processes(data_parallel, tmp_path, wrap)


def placements(rank: int) -> None:
    """Any sharding of the tensors and of epsilon; sizes that two ranks cannot share evenly."""
    mesh = init_device_mesh("cpu", (WORLD,))
    shape = (5, 7)
    grad_output, *tensors = (torch.randn(shape) for _ in range(3))
    for channels, channel_dim in ((1, 1), (7, 1), (7, -1), (5, 0)):
        epsilon = torch.linspace(-0.5, 0.5, channels)
        for function in (crrelu_ext.crrelu, crrelu_ext.crrelu_glu):
            inputs = tensors[: 1 if function is crrelu_ext.crrelu else 2]
            leaves = [x.clone().requires_grad_() for x in (*inputs, epsilon)]
            expected = function(*leaves, channel_dim=channel_dim)
            expected.backward(grad_output)
            for placement in (Shard(0), Shard(1), Replicate()):
                for of_epsilon in (Replicate(), Shard(0)):
                    given = [
                        distribute_tensor(x.detach(), mesh, [p]).requires_grad_()
                        for x, p in zip(
                            leaves, [placement] * len(inputs) + [of_epsilon], strict=True
                        )
                    ]
                    output = function(*given, channel_dim=channel_dim)
                    assert_close(output.full_tensor(), expected.detach())
                    output.backward(distribute_tensor(grad_output, mesh, output.placements))
                    for leaf, parallel in zip(leaves, given, strict=True):
                        assert_close(parallel.grad.full_tensor(), leaf.grad)
                    if channels == 1 and of_epsilon == Replicate():
                        sharded = placement != Replicate()
                        assert output.placements == (placement,)  # nothing was gathered
                        assert given[-1].grad.placements == (Partial() if sharded else Replicate(),)


def partial_gradients(rank: int) -> None:
    """A grad_output that is a sum over ranks stays one, and so do the gradients."""
    mesh = init_device_mesh("cpu", (WORLD,))
    input, epsilon = torch.randn(4, 3), torch.tensor([0.4])
    parts = torch.randn(WORLD, 4, 3)
    expected = torch.ops.crrelu_ext.crrelu_backward(parts.sum(0), input, epsilon, 1, [True, True])
    whole = [Replicate()]
    crrelu_ext.crrelu(
        distribute_tensor(input, mesh, whole), distribute_tensor(epsilon, mesh, whole)
    )
    gradients = torch.ops.crrelu_ext.crrelu_backward(
        DTensor.from_local(parts[rank], mesh, [Partial()]),
        distribute_tensor(input, mesh, whole),
        distribute_tensor(epsilon, mesh, whole),
        1,
        [True, True],
    )
    for gradient, exact in zip(gradients, expected, strict=True):
        assert gradient.placements == (Partial(),)
        assert_close(gradient.full_tensor(), exact)


@pytest.mark.parametrize("check", [placements, partial_gradients])
def test_dtensor(tmp_path: Path, check: Callable[..., None]) -> None:
    in_two_processes(check, tmp_path)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 9)
        self.act = CRReLU(init=-0.4)
        self.down = nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(self.norm(x))))


def tensor_parallel(rank: int) -> None:
    """The hidden features of an MLP over the ranks, the sequence around it too."""
    mesh = init_device_mesh("cpu", (WORLD,))
    model, alone = Block(), Block()
    alone.load_state_dict(model.state_dict())
    input, target = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    nn.functional.mse_loss(alone(input), target).backward()
    parallelize_module(
        model,
        mesh,
        {
            "norm": SequenceParallel(),
            "up": ColwiseParallel(input_layouts=Shard(1), use_local_output=False),
            "down": RowwiseParallel(output_layouts=Replicate()),
        },
    )
    model.act.epsilon = nn.Parameter(distribute_tensor(model.act.epsilon, mesh, [Replicate()]))
    sequence = distribute_tensor(input, mesh, [Shard(1)])
    nn.functional.mse_loss(model(sequence), target).backward()
    assert isinstance(model.act.epsilon.grad, DTensor)
    assert model.act.epsilon.grad.placements == (Partial(),)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter.grad, DTensor), name
        assert_close(parameter.grad.full_tensor(), alone.get_parameter(name).grad, msg=name)


def test_tensor_parallel(tmp_path: Path) -> None:
    in_two_processes(tensor_parallel, tmp_path)


def test_example() -> None:
    """The example trains under torchrun, and with as many processes as it is given."""
    script = Path(__file__).parents[1] / "examples" / "train_distributed.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = subprocess.run(
        [*command, str(script), "--steps", "20"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    first, last = (float(line.split()[-1]) for line in run.stdout.splitlines() if "loss" in line)
    assert last < first
