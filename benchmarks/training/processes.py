"""The processes that train one model together, as torchrun or accelerate starts them; or one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among ``world``; the first one, of rank 0, writes files and shows progress."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def all(self, value: Any) -> list[Any]:
        """The value of each process, by rank."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def of_first(self, value: Any) -> Any:
        """What the first process has."""
        return self.all(value)[0]

    def in_step(self, items: Iterable[T]) -> Iterator[tuple[T, bool]]:
        """The items, each with True; and the last one again, with False, for as long as another
        process has items: they may have to meet in each one's computation."""
        if self.world == 1:
            yield from ((item, True) for item in items)
            return
        iterator, item = iter(items), None
        while True:
            following = next(iterator, None)
            if not any(self.all(following is not None)):
                return
            item = item if following is None else following
            assert item is not None
            yield item, following is not None

    def share(self, model: nn.Module, parallel: str) -> nn.Module:
        """The model for training: each process has it whole (ddp), or a part of it (fsdp2)."""
        if self.world == 1:
            return model
        if parallel == "ddp":
            on_gpu = self.device.type == "cuda"
            return DistributedDataParallel(model, [self.device.index] if on_gpu else None)
        mesh = init_device_mesh(self.device.type, (self.world,))
        for block in _blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    @contextmanager
    def accumulate(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Gradients go to the other processes with the last part of a batch only."""
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
            yield
        elif isinstance(model, DistributedDataParallel) and not last:
            with model.no_sync():
                yield
        else:
            yield


@contextmanager
def join(device: str) -> Iterator[Processes]:
    """This process among its peers, with the device that it is to use.

    Raises:
        ValueError: there is no such device.
    """
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda" and visible <= local:
        raise ValueError(
            f"device is 'cuda', and this process, number {local} on this machine, has no GPU: "
            f"torch {torch.__version__} sees {visible}; allowed are cpu and auto, or fewer "
            "processes"
        )
    on_gpu = device != "cpu" and visible > local
    if on_gpu:
        torch.cuda.set_device(local)
    chosen = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(chosen)
        return
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Processes(chosen, dist.get_rank(), world)
    finally:
        dist.destroy_process_group()
        if not on_gpu:
            # Gloo's threads let go of the last collective's tensors once it is done, and need
            # Python's lock for that; a process that ends before they had it aborts.
            time.sleep(0.1)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules: a transformer's blocks, a network's stages."""
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from _blocks(child)
