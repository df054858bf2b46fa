"""The models whose training steps are timed: a transformer, in two sizes, and its MLP alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import crrelu_ext
from crrelu_ext.dynamic import smooth_relu

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"GELU": nn.GELU, "CRReLU": crrelu_ext.CRReLU}
if find_spec("scipy"):  # which dynamic EAFO needs
    ACTIVATIONS["table"] = partial(
        crrelu_ext.DerivedActivation, smooth_relu, lower=-8, upper=8, knots=64
    )
    ACTIVATIONS["dynamic"] = crrelu_ext.DynamicActivation


class Shape(NamedTuple):
    batch: int
    tokens: int
    width: int
    depth: int
    heads: int
    causal: bool
    outputs: int


MODELS = {
    "ViT-Tiny": Shape(256, 197, 192, 12, 3, causal=False, outputs=1000),
    "GPT-2 small": Shape(8, 1024, 768, 12, 12, causal=True, outputs=50257),
    "GPT-2 small, one MLP block": Shape(8, 1024, 768, 0, 12, causal=True, outputs=0),
    "ViT-Tiny, CIFAR": Shape(256, 65, 192, 12, 3, causal=False, outputs=100),
}
"""In the order of what matters, should the time not suffice. CIFAR: 8 by 8 patches."""
SMALLEST = "GPT-2 small, one MLP block"


def mlp(width: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), activation(), nn.Linear(4 * width, width))


class Block(nn.Module):
    """Pre-norm attention and MLP, (batch, tokens, width) to the same."""

    def __init__(self, shape: Shape, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.heads, self.causal = shape.heads, shape.causal
        self.norms = nn.ModuleList(nn.LayerNorm(shape.width) for _ in range(2))
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.mlp = mlp(shape.width, activation)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


def training_step(
    name: str, activation: Callable[[], nn.Module], device: str, compiled: bool
) -> Callable[[], object]:
    """Forward, backward and AdamW in bfloat16, on random embeddings; blocks are compiled alike.

    A dynamic activation has its scheduler, with an update every hundred steps.
    """
    torch.manual_seed(0)
    shape = MODELS[name]
    if device == "cpu":  # a dry run
        shape = shape._replace(batch=1, tokens=8, depth=min(1, shape.depth), outputs=10)
    parts: list[nn.Module] = [Block(shape, activation) for _ in range(shape.depth)]
    parts = parts or [mlp(shape.width, activation)]
    if compiled:
        for part in parts:
            part.compile()
    head = [nn.Linear(shape.width, shape.outputs)] if shape.depth else []
    model = nn.Sequential(*parts, *head).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=device != "cpu")
    embeddings = torch.randn(shape.batch, shape.tokens, shape.width, device=device)
    scheduler = None
    if activation is crrelu_ext.DynamicActivation:
        scheduler = crrelu_ext.ActivationScheduler(model, every=100, warmup=4, total=10**9)
        scheduler.steps = 103
        scheduler.step()  # an update, which makes what later ones use again
        scheduler.steps = 50  # the next one is the 54th from here

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = model(embeddings).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if scheduler:
            scheduler.step()

    return step
