"""What went wrong when a loss is no number any more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .task import Batch, Task


class Diverged(RuntimeError):
    """The loss is NaN or infinite; the message says where."""


def first_bad_layer(task: Task, model: nn.Module, batch: Batch) -> str:
    """The first layer whose output is not finite, in words."""
    bad: list[str] = []

    def after(name: str, module: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all() and not bad:
            weights = all(p.isfinite().all() for p in module.parameters(recurse=False))
            why = "" if weights else ", whose weights are not finite either"
            bad.append(f"{name} ({type(module).__name__}){why}")

    hooks = [
        module.register_forward_hook(lambda m, _, output, name=name: after(name, m, output))
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            task.loss(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return bad[0] if bad else "none: the loss itself overflows"
