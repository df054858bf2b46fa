"""The kernels and four models on a GPU, beside their rivals; figures go to a JSON file.

``python measure.py FILE [--seconds N] [--dry-run]``; needs torch and crrelu_ext alone. A dry run is
on the CPU, with sizes and rounds that say nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import torch
from device import Call, Device
from models import ACTIVATIONS, MODELS, training_step
from torch import Tensor
from torch.nn import functional as F

import crrelu_ext

DTYPES = ("float32", "bfloat16", "float16")
FIRST_SIZES, SIZES = tuple(2**k for k in (26, 12, 28)), tuple(2**k for k in (30, 16, 20, 24))
"""In the order of what matters, should the time not suffice; the models come between them."""
COMPILED_SIZES = (2**26, 2**28)
STREAMS = {"forward": 2, "backward": 3, "forward+backward": 5}
"""Tensors that an activation must read and write; a copy moves 2."""
CHANNELS = 1024
OTHER_LAYOUTS = {"192 epsilons": (192,), "64 epsilons, 32 × 32": (64, 32, 32)}
"""Of large inputs, with an epsilon for each channel: after the rows, the shape of each. A warp's
packs are not a part of the first, and a block's are more than a channel of the second."""


def composed(input: Tensor, epsilon: Tensor) -> Tensor:
    """The formula as one writes it without this package."""
    return F.relu(input) + epsilon.to(input.dtype) * input * torch.exp(-0.5 * input.square())


@dataclass(frozen=True)
class Timing:
    """Medians over `rounds`: of a call on the device, and, for what is small, of an eager call as
    the host sees it. Caches are cold, but below some 2^18 elements, where 64 sets of operands do
    not fill them."""

    operation: str
    dtype: str
    numel: int
    name: str
    seconds: float
    spread: float
    rounds: int
    eager_seconds: float | None
    peak_bytes: int


@dataclass(frozen=True)
class Operands:
    input: Tensor
    grad_output: Tensor
    output: Tensor
    epsilon: Tensor
    epsilons: Tensor
    place: Tensor


def forward_backward(function: Callable[..., Tensor], *leaves: Tensor, grad: Tensor) -> object:
    return torch.autograd.grad(function(*leaves), leaves, grad)


def cases(o: Operands, compiled: bool) -> Iterator[tuple[str, str, Call]]:
    """operation, name and call; rivals come one after another."""
    aten, ours = torch.ops.aten, torch.ops.crrelu_ext
    yield "forward", "copy_", partial(o.output.copy_, o.input)
    yield "forward", "CRReLU", partial(crrelu_ext.crrelu, o.input, o.epsilon)
    rows = o.grad_output.view(-1, CHANNELS), o.input.view(-1, CHANNELS)
    by_channel = f"CRReLU, {CHANNELS} epsilons"
    yield "forward", by_channel, partial(crrelu_ext.crrelu, rows[1], o.epsilons)
    placed = crrelu_ext.crrelu_at
    yield "forward", "CRReLU, placed", partial(placed, o.input, o.epsilon, o.place)
    yield "forward", "GELU erf", partial(F.gelu, o.input)
    yield "forward", "GELU tanh", partial(F.gelu, o.input, approximate="tanh")
    yield "forward", "SiLU", partial(F.silu, o.input)
    yield "forward", "ReLU", partial(F.relu, o.input)
    yield "forward", "eager", partial(composed, o.input, o.epsilon)

    others = {
        f"CRReLU, {name}": tuple(
            t[: t.numel() // math.prod(shape) * math.prod(shape)].view(-1, *shape)
            for t in (o.grad_output, o.input)
        )
        for name, shape in OTHER_LAYOUTS.items()
        if o.input.numel() >= 2**20
    }
    for name, (_, x) in others.items():
        yield "forward", name, partial(crrelu_ext.crrelu, x, o.epsilons[: x.shape[1]])

    grads = o.grad_output, o.input
    backward = ours.crrelu_backward
    yield "backward", "CRReLU", partial(backward, *grads, o.epsilon, 1, [True, True])
    yield (
        "backward",
        "CRReLU, epsilon frozen",
        partial(backward, *grads, o.epsilon, 1, [True, False]),
    )
    yield "backward", by_channel, partial(backward, *rows, o.epsilons, 1, [True, True])
    for name, (grad, x) in others.items():
        epsilons = o.epsilons[: x.shape[1]]
        yield "backward", name, partial(backward, grad, x, epsilons, 1, [True, True])
    at = partial(ours.crrelu_at_backward, *grads, o.epsilon, o.place, 1, [True, True])
    yield "backward", "CRReLU, placed", at
    yield "backward", "GELU erf", partial(aten.gelu_backward, *grads)
    yield "backward", "GELU tanh", partial(aten.gelu_backward, *grads, approximate="tanh")
    yield "backward", "SiLU", partial(aten.silu_backward, *grads)

    x, e = o.input.detach().requires_grad_(), o.epsilon.detach().requires_grad_()
    both = partial(forward_backward, grad=o.grad_output)
    yield "forward+backward", "CRReLU", partial(both, crrelu_ext.crrelu, x, e)
    yield "forward+backward", "GELU erf", partial(both, F.gelu, x)
    yield "forward+backward", "eager", partial(both, composed, x, e)
    if compiled:
        torch.compiler.reset()
        formula = torch.compile(composed, dynamic=False, fullgraph=True)
        yield "forward", "compiled", partial(formula, o.input, o.epsilon)
        yield "forward+backward", "compiled", partial(both, formula, x, e)


def operands(device: Device, dtype: str, numel: int) -> Operands:
    normal = partial(torch.randn, numel, device=device.name, dtype=getattr(torch, dtype))
    x = normal()
    epsilons = torch.full((CHANNELS,), 0.01, device=device.name)
    place = torch.tensor([[0.1], [0.9]], device=device.name)
    return Operands(x, normal(), torch.empty_like(x), epsilons[:1], epsilons, place)


@dataclass(frozen=True)
class Step:
    """Training steps of one model: seconds of each of the alternating runs, by activation."""

    model: str
    mode: str
    seconds: dict[str, list[float]]


@dataclass
class Figures:
    """All that is measured; written whenever there is more, since a run may be stopped."""

    file: Path
    timings: list[Timing] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def write(self) -> None:
        timings = sorted(self.timings, key=lambda t: (t.dtype, t.numel))
        found = {
            "streams": STREAMS,
            "timings": [asdict(timing) for timing in timings],
            "steps": [asdict(step) for step in self.steps],
            "left out": self.left_out,
        }
        self.file.write_text(json.dumps(found, indent=1) + "\n")


def measure_kernels(
    device: Device, sizes: Sequence[int], deadline: float, figures: Figures
) -> None:
    for numel in sizes:
        for dtype in DTYPES:
            if time.monotonic() > deadline:
                figures.left_out.append(f"{dtype}, {numel} elements: no time")
                continue
            nbytes = 3 * numel * getattr(torch, dtype).itemsize
            sets = max(1, min(64, device.cold_bytes // nbytes + 1))
            rotating = [operands(device, dtype, numel) for _ in range(sets)]
            compiled = numel in COMPILED_SIZES
            by_set = [cases(o, compiled) for o in rotating]
            for same in zip(*by_set, strict=True):
                operation, name, call = same[0]
                calls = [case[2] for case in same]
                try:
                    rounds = 3 if device.dry_run else 30
                    seconds = device.time(calls, rounds)
                    eager = device.time_eager(call) if numel <= 2**16 else None
                    peak = device.peak_bytes(call)
                except RuntimeError as error:  # a rival that cannot be captured, or lacks memory
                    figures.left_out.append(f"{operation}, {dtype}, {numel}, {name}: {error}")
                    continue
                spread = (max(seconds) - min(seconds)) / median(seconds)
                figures.timings.append(
                    Timing(
                        operation, dtype, numel, name, median(seconds), spread, rounds, eager, peak
                    )
                )
            del rotating, by_set
            if not device.dry_run:
                torch.cuda.empty_cache()
            figures.write()


def measure_models(device: Device, deadline: float, figures: Figures) -> None:
    runs, each = (2, 1) if device.dry_run else (20, 3)
    for mode in ("eager",) if device.dry_run else ("eager", "compiled"):
        for model in MODELS:
            if time.monotonic() > deadline:
                figures.left_out.append(f"{model}, {mode}: no time")
                continue
            torch.compiler.reset()
            by_name = {
                name: training_step(model, activation, device.name, mode == "compiled")
                for name, activation in ACTIVATIONS.items()
            }
            for step in by_name.values():
                for _ in range(3):
                    step()
            seconds: dict[str, list[float]] = {name: [] for name in by_name}
            for _ in range(runs):
                for name, step in by_name.items():
                    device.synchronize()
                    begin = time.perf_counter()
                    for _ in range(each):
                        step()
                    device.synchronize()
                    seconds[name].append((time.perf_counter() - begin) / each)
            figures.steps.append(Step(model, mode, seconds))
            figures.write()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    device, begin = Device(arguments.dry_run), time.monotonic()
    figures = Figures(arguments.file)
    first, later = ((2**12,), (2**20,)) if device.dry_run else (FIRST_SIZES, SIZES)
    measure_kernels(device, first, begin + 0.45 * arguments.seconds, figures)
    measure_models(device, begin + 0.75 * arguments.seconds, figures)
    measure_kernels(device, later, begin + arguments.seconds, figures)
    figures.write()  # also what was left out at the end


if __name__ == "__main__":
    main()
