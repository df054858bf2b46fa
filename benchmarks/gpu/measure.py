"""The kernels and four models on a GPU, beside their rivals; figures go to a JSON file.

``python measure.py FILE [--seconds N] [--dry-run]``; needs torch and crrelu_ext alone. A dry run is
on the CPU, with sizes and rounds that say nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from statistics import median

import torch
from device import Call, Device, Race
from models import ACTIVATIONS, MODELS, SMALLEST, training_step
from operations import cases, operands
from report import PAIRS, replace_text

DTYPES = ("float32", "bfloat16", "float16")
FIRST_SIZES, SIZES = tuple(2**k for k in (26, 12, 28, 30)), tuple(2**k for k in (24, 20, 16))
"""In the order of what matters, should the time not suffice; the models come between them."""
COMPILED_SIZES = (2**26, 2**28)
COMPILE_SECONDS = 35
"""For a model with two activations: with less than that left it is not begun."""
STREAMS = {
    "forward": 2, "backward": 3, "forward+backward": 5, "gated": 3, "gated, backward": 5,
}  # fmt: skip
"""Tensors that an activation must read and write; a copy moves 2."""


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
        replace_text(self.file, json.dumps(found, indent=1) + "\n")

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """An error leaves out this alone."""
        try:
            yield
        except Exception as error:
            self.left_out.append(f"{what}: {type(error).__name__}: {error}".splitlines()[0])


def time_kernels(device: Device, dtype: str, numel: int, figures: Figures) -> None:
    torch.cuda.empty_cache()  # of what was timed before
    type_ = getattr(torch, dtype)
    nbytes = numel * type_.itemsize
    sets = max(1, min(64, device.cold_bytes // (3 * nbytes) + 1))
    compiled = numel in COMPILED_SIZES
    by_set = [cases(operands(device, type_, numel), compiled) for _ in range(sets)]
    race: Race[tuple[str, str]] = Race(device, 2 * nbytes)
    first: dict[tuple[str, str], Call] = {}
    peak = {}
    for same in zip(*by_set, strict=True):
        operation, name, call = same[0]
        with figures.noting(f"{operation}, {dtype}, {numel}, {name}"):
            peak[operation, name] = device.peak_bytes(call)
            race.add((operation, name), [case[2] for case in same])
            first[operation, name] = call
    rounds = 3 if device.dry_run else 20
    seconds = race.run(rounds)
    eager = device.time_eager(first) if numel <= 2**16 else {}
    for (operation, name), each in seconds.items():
        middle, spread = median(each), (max(each) - min(each)) / median(each)
        what = operation, name
        timing = (dtype, numel, name, middle, spread, rounds, eager.get(what), peak[what])
        figures.timings.append(Timing(operation, *timing))


def measure_kernels(
    device: Device, sizes: Sequence[int], deadline: float, figures: Figures
) -> None:
    for numel, dtype in product(sizes, DTYPES):
        what = f"{dtype}, {numel} elements"
        if time.monotonic() > deadline:
            figures.left_out.append(f"{what}: no time")
            continue
        with figures.noting(what):
            time_kernels(device, dtype, numel, figures)
        figures.write()


def time_steps(
    device: Device, model: str, mode: str, names: Sequence[str], figures: Figures
) -> None:
    torch.cuda.empty_cache()
    torch.compiler.reset()
    runs, each = (2, 1) if device.dry_run else (20, 3)
    by_name = {
        name: training_step(model, ACTIVATIONS[name], device.name, mode == "compiled")
        for name in names
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


def measure_models(
    device: Device, models: Sequence[str], mode: str, deadline: float, figures: Figures
) -> None:
    pairs = [pair for pair in PAIRS if set(pair) <= ACTIVATIONS.keys()]
    for names, model in product(pairs, models):
        what = f"{model}, {mode}, {' and '.join(names)}"
        if time.monotonic() > deadline:
            figures.left_out.append(f"{what}: no time")
            continue
        with figures.noting(what):
            time_steps(device, model, mode, names, figures)
        figures.write()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    device, begin, seconds = Device(arguments.dry_run), time.monotonic(), arguments.seconds
    figures = Figures(arguments.file)
    first, later = ((2**12,), (2**20,)) if device.dry_run else (FIRST_SIZES, SIZES)
    to_compile = [SMALLEST] if device.dry_run else list(MODELS)
    measure_kernels(device, first, begin + 0.5 * seconds, figures)
    measure_models(device, list(MODELS), "eager", begin + 0.65 * seconds, figures)
    measure_kernels(device, later, begin + 0.8 * seconds, figures)
    measure_models(device, to_compile, "compiled", begin + seconds - COMPILE_SECONDS, figures)
    figures.write()  # also what was left out at the end


if __name__ == "__main__":
    main()
