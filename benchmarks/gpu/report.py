"""The figures of a run as Markdown; ``python report.py FILE...`` prints the table for the README,
of the files in benchmarks/results."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

Figures = dict[str, Any]
Seconds = dict[tuple[str, str, int, str], float]
"""Of an operation, on a dtype and so many elements, by a name."""

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
LARGE = 2**26
"""The targets of throughput hold from here on."""
MODELS = ("ViT-Tiny", "GPT-2 small", "ViT-Tiny, CIFAR")
PAIRS = (("GELU", "CRReLU"), ("dynamic", "table"))
"""Activations whose training steps are compared."""


def replace_text(file: Path, text: str) -> None:
    """At once: whoever reads the file, or kills this process, finds it whole."""
    part = file.with_suffix(".part")
    part.write_text(text)
    os.replace(part, file)


def numel_name(numel: int) -> str:
    for unit, name in ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki")):
        if numel >= unit:
            return f"{numel // unit} {name}"
    return str(numel)


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---"] * len(header)
    return ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)] + [""]


def seconds_of(figures: Figures) -> Seconds:
    timings = figures["timings"]
    return {(t["operation"], t["dtype"], t["numel"], t["name"]): t["seconds"] for t in timings}


def of_copy(figures: Figures, seconds: Seconds, operation: str, dtype: str, numel: int) -> float:
    """Bandwidth, as a share of what copy_ reaches on as many elements; 0 if that is not known."""
    copy = seconds.get(("forward", dtype, numel, "copy_"), 0.0)
    mine = seconds[operation, dtype, numel, "CRReLU"]
    return copy / 2 * figures["streams"][operation] / mine


def targets(figures: Figures) -> Iterator[list[str]]:
    """What is wanted on an H200, the worst that was measured, and whether it is enough."""
    seconds = seconds_of(figures)
    large = {key[1:3] for key in seconds if key[2] >= LARGE and key[3] == "CRReLU"}

    def verdict(what: str, worst: float, enough: bool) -> list[str]:
        return [what, f"{worst:.3f}", "yes" if enough else "NO"]

    def ratios(operation: str, *rivals: str) -> list[float]:
        """Times of the rivals over that of CRReLU."""
        return [
            theirs / mine
            for key in large
            if (mine := seconds.get((operation, *key, "CRReLU")))
            for rival in rivals
            if (theirs := seconds.get((operation, *key, rival)))
        ]

    for operation, least in (("forward", 0.97), ("backward", 0.95)):
        shares = [
            of_copy(figures, seconds, operation, *key)
            for key in large
            if (operation, *key, "CRReLU") in seconds
        ]
        if shares:
            what = f"{operation}: at least {least} of copy_'s bandwidth"
            yield verdict(what, min(shares), min(shares) >= least)
    if added := ratios("backward", "add"):
        yield ["backward: the same of torch.add's, a limit nearer to it", f"{min(added):.3f}", ""]
    for operation, least, rivals in (
        ("forward", 1, ("GELU erf", "GELU tanh")),
        ("backward", 1 / 1.02, ("GELU erf", "GELU tanh")),
        ("forward+backward", 5, ("eager",)),
        ("forward+backward", 1, ("compiled",)),
    ):
        if found := ratios(operation, *rivals):
            what = f"{operation}: at least {least:.2f} times as fast as {' and '.join(rivals)}"
            yield verdict(what, min(found), min(found) >= least)
    eager = {
        (t["dtype"], t["name"]): t["eager_seconds"]
        for t in figures["timings"]
        if t["operation"] == "forward" and t["numel"] == 2**12
    }
    late = [
        1e6 * (value - eager[dtype, "GELU erf"])
        for (dtype, name), value in eager.items()
        if name == "CRReLU" and (dtype, "GELU erf") in eager
    ]
    if late:
        what = "4 Ki elements, eager: at most 1 µs more than F.gelu"
        yield verdict(what, max(late), max(late) <= 1)
    for step in figures["steps"]:
        if step["model"] not in MODELS:
            continue
        if "CRReLU" in step["seconds"]:
            _, middle, high = quantiles(step_ratios(step, "GELU", "CRReLU"), n=4)
            what = f"{step['model']}, {step['mode']}: no slower than with GELU, within the spread"
            yield verdict(what, middle, high >= 1)
        if "dynamic" in step["seconds"]:
            middle = median(step_ratios(step, "dynamic", "table"))
            what = f"{step['model']}, {step['mode']}: dynamic EAFO takes at most 1 % more"
            yield verdict(what, middle, middle <= 1.01)


def kernels(figures: Figures) -> Iterator[str]:
    """Each operation beside the copy of its size and its rivals."""
    timings, seconds = figures["timings"], seconds_of(figures)
    for operation, streams in figures["streams"].items():
        names = list(dict.fromkeys(t["name"] for t in timings if t["operation"] == operation))
        rivals = [n for n in names if not n.startswith("CRReLU") and n != "copy_"]
        header = ["dtype", "elements", "", "µs", "GB/s", "of copy_", *(f"× {n}" for n in rivals)]
        rows = []
        for t in timings:
            if t["operation"] != operation or not t["name"].startswith("CRReLU"):
                continue
            key, mine = (t["dtype"], t["numel"]), t["seconds"]
            copy = seconds.get(("forward", *key, "copy_"))
            theirs = [seconds.get((operation, *key, name)) for name in rivals]
            rows.append(
                [
                    *(t["dtype"], numel_name(t["numel"]), t["name"], f"{mine * 1e6:.2f}"),
                    f"{streams * t['numel'] * SIZES[t['dtype']] / mine / 1e9:.0f}",
                    f"{copy / 2 * streams / mine:.3f}" if copy else "",
                    *(f"{time / mine:.2f}" if time else "" for time in theirs),
                ]
            )
        yield from [f"## {operation}", ""]
        yield from ["× rival: how many times its speed CRReLU has.", ""]
        yield from table(header, rows)


def limits(figures: Figures) -> Iterator[str]:
    streams = {"copy_": 2, "add": 3}
    rows = [
        [t["dtype"], numel_name(t["numel"]), t["name"], f"{gigabytes / t['seconds']:.0f}"]
        for t in figures["timings"]
        if t["name"] in streams
        for gigabytes in [streams[t["name"]] * t["numel"] * SIZES[t["dtype"]] / 1e9]
    ]
    yield from ["## The limits: a copy from the device to itself, and torch.add", ""]
    yield from table(["dtype", "elements", "", "GB/s"], rows)


def eager_calls(figures: Figures) -> Iterator[str]:
    rows = [
        [t["operation"], t["dtype"], numel_name(t["numel"]), t["name"], f"{1e6 * eager:.2f}"]
        for t in figures["timings"]
        if (eager := t["eager_seconds"]) is not None
    ]
    yield from ["## Small sizes, called from Python", ""]
    yield from table(["operation", "dtype", "elements", "", "µs"], rows)


def memory(figures: Figures) -> Iterator[str]:
    largest = max((t["numel"] for t in figures["timings"]), default=0)
    rows = [
        [t["operation"], t["dtype"], t["name"], f"{t['peak_bytes'] / 2**20:.0f}"]
        for t in figures["timings"]
        if t["numel"] == largest
    ]
    yield from [f"## Peak memory beside the operands, {numel_name(largest)} elements", ""]
    yield from table(["operation", "dtype", "", "MiB"], rows)


def step_ratios(step: Figures, *names: str) -> list[float]:
    """Of each round, the time with the first activation over that with the second."""
    first, second = (step["seconds"][name] for name in names)
    return [a / b for a, b in zip(first, second, strict=True)]


def steps(figures: Figures) -> Iterator[str]:
    rows = []
    for step in figures["steps"]:
        for pair in PAIRS:
            if not set(pair) <= step["seconds"].keys():
                continue
            ratios = step_ratios(step, *pair)
            rows.append(
                [
                    *(step["model"], step["mode"], " / ".join(pair)),
                    *(f"{1e3 * median(step['seconds'][name]):.3f}" for name in pair),
                    f"{median(ratios):.3f} ({min(ratios):.3f} - {max(ratios):.3f})",
                ]
            )
    yield from ["## Training steps in bfloat16", ""]
    yield from table(["model", "", "activations", "ms", "ms", "ratio"], rows)


def overview(summary: Figures, figures: Figures) -> str:
    """What was run on what, whether it is as wanted, and what was left out."""
    lines = ["# CRReLU on a GPU", ""]
    lines += table(["", ""], [[name, str(value)] for name, value in summary["facts"].items()])
    lines += table(
        ["part", "outcome", "s"],
        [[part["name"], part["outcome"], f"{part['seconds']:.0f}"] for part in summary["parts"]],
    )
    left_out = summary["left out"] + figures.get("left out", [])
    lines += ["## Left out", "", *([f"- {what}" for what in left_out] or ["Nothing."]), ""]
    if figures:
        lines += ["## What is wanted on an H200", ""]
        lines += table(["", "the worst", "enough"], list(targets(figures)))
    return "\n".join(lines)


def markdown(summary: Figures, figures: Figures) -> str:
    lines = [overview(summary, figures)]
    if figures:
        for section in (kernels, limits, eager_calls, memory, steps):
            lines += section(figures)
    return "\n".join(lines)


def small_file(summary: Figures, figures: Figures) -> str:
    """What benchmarks/results keeps of a run, a line for each time."""
    lines = [f'"facts": {json.dumps(summary["facts"], indent=1)}']
    lines += [f'"streams": {json.dumps(figures["streams"])}']
    for name in ("timings", "steps"):
        entries = ",\n".join(json.dumps(entry) for entry in figures[name])
        lines.append(f'"{name}": [\n{entries}\n]')
    return "{" + ",\n".join(lines) + "}\n"


def readme_table(files: list[Figures]) -> list[str]:
    """Each GPU at 64 Mi elements."""
    rows = []
    for figures in files:
        seconds = seconds_of(figures)
        for operation, dtype, numel, name in seconds:
            if numel != LARGE or name != "CRReLU":
                continue
            mine = seconds[operation, dtype, numel, name]
            cells = [figures["facts"]["GPU"], operation, dtype, f"{1e6 * mine:.0f}"]
            cells.append(f"{of_copy(figures, seconds, operation, dtype, numel):.2f}")
            for rival in ("GELU erf", "eager", "compiled"):
                time = seconds.get((operation, dtype, numel, rival))
                cells.append(f"{time / mine:.2f}" if time else "")
            rows.append(cells)
    return table(["GPU", "", "dtype", "µs", "of copy_", "× GELU", "× eager", "× compiled"], rows)


if __name__ == "__main__":
    print("\n".join(readme_table([json.loads(Path(file).read_text()) for file in sys.argv[1:]])))
