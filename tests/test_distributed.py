"""Several processes on one machine: every training step and every gradient as in one process."""

# mypy: disable-error-code="attr-defined, union-attr, assignment"

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import crrelu_ext
from crrelu_ext import CRReLU, CRReLUMLP, DerivedActivation

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
WORLD = 2


def in_processes(folder: Path, *checks: Callable[[int], None], world: int = WORLD) -> None:
    """Starts them once for all checks, each a function of the rank.

    Forked by a server, so that they end without the interpreter's finalization: Gloo's threads may
    still want Python's lock then, to let go of the last collective's tensors, and would abort.
    """
    arguments = (folder / "rendezvous", checks, world)
    mp.start_processes(_process, arguments, world, start_method="forkserver")


def _process(
    rank: int, rendezvous: Path, checks: tuple[Callable[[int], None], ...], world: int
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous.as_uri(), rank=rank, world_size=world)
    for check in checks:
        torch.manual_seed(0)
        check(rank)
    dist.destroy_process_group()


class Gated(nn.Module):
    """LLaMA's feed-forward block."""

    def __init__(self, features: int, hidden: int, epsilons: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(features, hidden), nn.Linear(features, hidden)
        self.down = nn.Linear(hidden, features)
        self.epsilon = nn.Parameter(torch.linspace(-0.4, 0.3, epsilons))

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate(x), self.up(x)
        return self.down(crrelu_ext.crrelu_glu(gate, up, self.epsilon, channel_dim=-1))


def network() -> nn.Sequential:
    """Scalar and per-channel epsilons, both blocks, a table."""
    return nn.Sequential(
        nn.Linear(6, 10),
        CRReLU(init=-0.3),
        nn.Linear(10, 8),
        CRReLU(8, init=0.2, channel_dim=-1),
        Gated(8, 10, 10),
        DerivedActivation(nn.functional.silu, lower=-8.0, upper=8.0),
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
            if list(layer.parameters()):
                fully_shard(layer, mesh=mesh)
        wrapped = fully_shard(model, mesh=mesh)
    step(wrapped, input.chunk(WORLD)[rank], target.chunk(WORLD)[rank])
    for name, parameter in model.named_parameters():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        assert_close(whole, alone.get_parameter(name), msg=name)


def test_data_parallel(tmp_path: Path) -> None:
    in_processes(tmp_path, *(partial(data_parallel, wrap=wrap) for wrap in ("ddp", "fsdp2")))


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


def partial_tensors(rank: int) -> None:
    """Of what is a sum over the ranks, an operator's result is one where it is linear in that."""
    mesh = init_device_mesh("cpu", (WORLD,))
    x, up, epsilon = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0.4])
    table = DerivedActivation(torch.tanh, lower=-4.0, upper=4.0).table
    parts = torch.randn(WORLD, 4, 3)
    whole = parts.sum(0)
    crrelu_ext.crrelu(*(distribute_tensor(t, mesh, [Replicate()]) for t in (x, epsilon)))

    def call(operator: str, *arguments: Any) -> list[tuple[Placement, ...]]:
        """The placements of the results, which must be right; None stands for the sum."""
        function = getattr(torch.ops.crrelu_ext, operator)
        expected = function(*(whole if a is None else a for a in arguments))
        actual = function(
            *(
                DTensor.from_local(parts[rank], mesh, [Partial()])
                if a is None
                else distribute_tensor(a, mesh, [Replicate()])
                if isinstance(a, Tensor)
                else a
                for a in arguments
            )
        )
        if isinstance(actual, Tensor):
            actual, expected = [actual], [expected]
        for result, exact in zip(actual, expected, strict=True):
            assert_close(result.full_tensor(), exact)
        return [result.placements for result in actual]

    linear = [(Partial(),)]
    assert call("crrelu_backward", None, x, epsilon, 1, [True] * 2) == linear * 2
    assert call("crrelu_glu_backward", None, x, up, epsilon, 1, [True] * 3) == linear * 3
    assert call("tabulated_backward", None, x, table) == linear
    assert call("crrelu_glu", x, None, epsilon, 1) == linear
    for summed in (
        call("crrelu", None, epsilon, 1),
        call("crrelu_glu", None, up, epsilon, 1),
        call("tabulated", None, table),
    ):
        assert summed != linear


def out(rank: int) -> None:
    """Into a DTensor, which may be the input, and which goes on as the input is sharded."""
    mesh = init_device_mesh("cpu", (WORLD,))
    values = torch.randn(5, 7)
    for channels in (1, 7):
        epsilon = torch.linspace(-0.5, 0.5, channels)
        expected = crrelu_ext.crrelu(values, epsilon)
        for placement in (Shard(0), Shard(1), Replicate()):
            input = distribute_tensor(values.clone(), mesh, [placement])
            for target in (torch.empty_like(input), input):
                whole = distribute_tensor(epsilon, mesh, [Replicate()])
                result = crrelu_ext.crrelu(input, whole, out=target)
                assert result is target
                assert target.placements == (placement,)
                assert_close(target.full_tensor(), expected)


def tables(rank: int) -> None:
    mesh = init_device_mesh("cpu", (WORLD,))
    act = DerivedActivation(nn.functional.silu, lower=-3.0, upper=3.0)
    parallel = distribute_module(copy.deepcopy(act), mesh)
    values, grad_output = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7)
    act(values).backward(grad_output)
    for placement in (Shard(0), Shard(1), Replicate()):
        input = distribute_tensor(values.detach(), mesh, [placement]).requires_grad_()
        output = parallel(input)
        output.backward(distribute_tensor(grad_output, mesh, [placement]))
        assert output.placements == input.grad.placements == (placement,)
        assert_close(output.full_tensor(), act(values).detach())
        assert_close(input.grad.full_tensor(), values.grad)


def test_dtensor(tmp_path: Path) -> None:
    in_processes(tmp_path, placements, partial_tensors, out, tables)


def two_dimensions(rank: int) -> None:
    """Ways to lay a matrix over a mesh of 2 by 2, with one epsilon or one per channel."""
    mesh = init_device_mesh("cpu", (2, 2))
    gate, up, grad_output = (torch.randn(5, 7) for _ in range(3))
    ways = [
        (Shard(0), Shard(1)),
        (Shard(1), Shard(0)),
        (Shard(0), Shard(0)),
        (Replicate(), Shard(1)),
    ]
    for channels in (1, 7):
        leaves = [gate.clone(), up.clone(), torch.linspace(-0.5, 0.5, channels)]
        expected = crrelu_ext.crrelu_glu(*(leaf.requires_grad_() for leaf in leaves))
        expected.backward(grad_output)
        for way in ways:
            given = [
                distribute_tensor(leaf.detach(), mesh, placements).requires_grad_()
                for leaf, placements in zip(leaves, (way, way, [Replicate()] * 2), strict=True)
            ]
            output = crrelu_ext.crrelu_glu(*given)
            assert_close(output.full_tensor(), expected.detach())
            output.backward(distribute_tensor(grad_output, mesh, output.placements))
            for parallel, leaf in zip(given, leaves, strict=True):
                assert_close(parallel.grad.full_tensor(), leaf.grad)
            alone = crrelu_ext.crrelu(given[0], given[2])
            assert_close(alone.full_tensor(), crrelu_ext.crrelu(leaves[0], leaves[2]).detach())
            if channels == 1:
                assert output.placements == alone.placements == way  # nothing was gathered


def test_dtensor_on_two_dimensions(tmp_path: Path) -> None:
    in_processes(tmp_path, two_dimensions, world=4)


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
    assert model.act.epsilon.grad.placements == (Partial(),)
    assert_same_gradients(model, alone)


def assert_same_gradients(model: nn.Module, alone: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        assert isinstance(parameter.grad, DTensor), name
        assert_close(parameter.grad.full_tensor(), alone.get_parameter(name).grad, msg=name)


def tensor_parallel_blocks(rank: int, make: Callable[[], nn.Module]) -> None:
    """The gated block and CRReLUMLP: an epsilon for all is replicated, one per channel sharded."""
    mesh = init_device_mesh("cpu", (WORLD,))
    model, alone = make(), make()
    alone.load_state_dict(model.state_dict())
    input = torch.randn(5, 6)
    expected = alone(input)
    expected.square().sum().backward()
    column = ColwiseParallel(use_local_output=False)
    row = RowwiseParallel(use_local_output=False)
    plan = {"gate": column, "up": column, "down": row, "fc1": column, "fc2": row}
    layers = dict(model.named_children())
    parallelize_module(model, mesh, {name: plan[name] for name in plan if name in layers})
    owner: Any = model if isinstance(model, Gated) else model.act
    way = Replicate() if owner.epsilon.numel() == 1 else Shard(0)
    owner.epsilon = nn.Parameter(distribute_tensor(owner.epsilon, mesh, [way]))
    output = model(input).full_tensor()
    assert_close(output, expected)
    output.square().sum().backward()
    assert owner.epsilon.grad.placements == (Partial() if way == Replicate() else Shard(0),)
    assert_same_gradients(model, alone)


BLOCKS: list[Callable[[], nn.Module]] = [
    partial(Gated, 6, 10, 1),
    partial(Gated, 6, 10, 10),
    partial(CRReLUMLP, 6, 10),
    partial(CRReLUMLP, 6, 10, per_channel=True),
]


def test_tensor_parallel(tmp_path: Path) -> None:
    blocks = [partial(tensor_parallel_blocks, make=make) for make in BLOCKS]
    in_processes(tmp_path, tensor_parallel, *blocks)


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
