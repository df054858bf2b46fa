"""Trains a small network with CRReLU on several processes, its parameters sharded by FSDP2.

    torchrun --standalone --nproc-per-node=2 examples/train_distributed.py

On GPUs, where there are as many as processes, else on the CPU. An epsilon has shape (1,), which
fully_shard takes like any other parameter; its gradient is averaged over the ranks like theirs.
"""

import argparse
import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from crrelu_ext import CRReLU, parameter_groups


def error(model: nn.Module, device: str) -> torch.Tensor:
    """How far the model is from the mean of squares, on new data."""
    x = torch.randn(64, 32, device=device)
    return nn.functional.mse_loss(model(x), x.square().mean(1, keepdim=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps

    rank, world = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    device = "cuda" if torch.cuda.device_count() >= world else "cpu"
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    mesh = init_device_mesh(device, (world,))

    torch.manual_seed(0)
    model = nn.Sequential(
        *(layer for _ in range(3) for layer in (nn.Linear(32, 32), CRReLU())), nn.Linear(32, 1)
    ).to(device)
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.05), lr=3e-3)

    torch.manual_seed(rank + 1)  # each rank draws data of its own
    for step in range(steps):
        loss = error(model, device)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and step == 0:
            print(f"step 1: loss {loss.item():.4f}", flush=True)
    with torch.no_grad():
        loss = torch.stack([error(model, device) for _ in range(10)]).mean()
    dist.all_reduce(loss, dist.ReduceOp.SUM)
    if rank == 0:
        print(f"after {steps} steps: loss {loss.item() / world:.4f}", flush=True)
    dist.destroy_process_group()
    if device == "cpu":
        # Gloo's threads let go of the last collective's tensors once it is done, and need Python's
        # lock for that; a process that ends before they had it aborts.
        time.sleep(0.1)


if __name__ == "__main__":
    main()
