"""The ratios this project holds itself to: ``python -m benchmarks.floors [--json FILE]``.

Each ratio is taken within one process, on a machine that may have other things to do: the two
sides take turns round by round, each round gives one ratio, and the median over the rounds is what
counts. Least and greatest show how far to trust it, and so does the ratio of the fastest rounds:
where it is another, the machine was not quiet.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from timeit import repeat, timeit

import rich.box
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import crrelu_ext

from .activations import COMPILED, CRRELU, EAGER, GELU, PLACED, SILU, activation, derived
from .cases import (
    FORWARD,
    FORWARD_BACKWARD,
    FORWARD_OUT,
    MODULE,
    MODULE_GRAPH,
    Call,
    Operands,
    copy,
    format_numel,
    forward,
    forward_backward,
    forward_out,
    make_operands,
    module,
    module_graph,
)
from .environment import describe, keep_freed_memory, need_native
from .failure import Failure, by_error
from .publish import publish, writable_file

MakeCall = Callable[[Operands], Call]


@dataclass(frozen=True)
class Floor:
    """How fast ``ours`` must be beside ``theirs``.

    ``bound`` says how many times as fast as the rival we are at least or, with ``at_most``, how
    many times its time we take at most.
    """

    operation: str
    dtype: str
    numel: int
    ours: MakeCall
    rival: str
    theirs: MakeCall
    bound: float
    at_most: bool = False

    def __str__(self) -> str:
        size = format_numel(self.numel)
        return f"floor, {self.operation}, {size} {self.dtype}, beside {self.rival}"


@dataclass(frozen=True)
class Result:
    """A floor and what was measured: the ratio over the rounds, the median seconds per call."""

    operation: str
    dtype: str
    numel: int
    rival: str
    isa: str
    bound: float
    at_most: bool
    ratio: float
    ratio_min: float
    ratio_max: float
    ratio_of_fastest: float
    rounds: int
    our_seconds: float
    their_seconds: float

    @property
    def holds(self) -> bool:
        return self.ratio <= self.bound if self.at_most else self.ratio >= self.bound

    def cells(self) -> tuple[str, ...]:
        """The row of a table, for ``COLUMNS``."""
        return (
            f"{self.operation}, {format_numel(self.numel)} {self.dtype}",
            self.rival,
            f"{self.ratio:.2f}",
            f"{self.ratio_min:.2f}-{self.ratio_max:.2f}",
            f"{self.ratio_of_fastest:.2f}",
            f"{'≤' if self.at_most else '≥'} {self.bound}",
            "holds" if self.holds else "MISSED",
        )


LEGEND = "≥: how many times as fast CRReLU is; ≤: its time as a multiple of the rival's"
COLUMNS = ("CRReLU", "beside", "median", "range", "fastest", "floor", "")


def _crrelu_backward(operands: Operands) -> Call:
    """The backward op alone: grad_input and the epsilon gradient."""
    return partial(
        torch.ops.crrelu_ext.crrelu_backward.default,
        operands.grad_output,
        operands.input,
        operands.epsilon,
        1,
        [True, True],
    )


def _gelu_backward(operands: Operands) -> Call:
    return partial(torch.ops.aten.gelu_backward.default, operands.grad_output, operands.input)


def _compiled_forward_backward(operands: Operands) -> Call:
    return forward_backward(activation(COMPILED), operands)


def _floors() -> Iterator[Floor]:
    """What is asked for on two cores with AVX-512."""
    mi = 2**20
    crrelu, crrelu_out = partial(forward, CRRELU), partial(forward_out, CRRELU)
    crrelu_both = partial(forward_backward, CRRELU)
    gelu, gelu_both = partial(forward, GELU), partial(forward_backward, GELU)
    silu, silu_both = partial(forward, SILU), partial(forward_backward, SILU)
    eager_both = partial(forward_backward, EAGER)
    compiled_both = _compiled_forward_backward
    both = FORWARD_BACKWARD
    for dtype, times_eager in (("float32", 12), ("bfloat16", 6)):
        yield Floor(FORWARD, dtype, mi, crrelu, "F.gelu", gelu, 2)
        yield Floor(
            "backward op", dtype, mi, _crrelu_backward, "gelu_backward", _gelu_backward, 2.5
        )
        yield Floor(both, dtype, mi, crrelu_both, "formula, eager", eager_both, times_eager)
        yield Floor(both, dtype, mi, crrelu_both, "formula, compiled", compiled_both, 2)
    for numel in (16 * mi, 64 * mi):
        yield Floor(FORWARD_OUT, "float32", numel, crrelu_out, "copy_", copy, 1.15, at_most=True)
    yield Floor(both, "float32", 16 * mi, crrelu_both, "F.gelu", gelu_both, 2.5)
    yield Floor(FORWARD, "float32", 16, crrelu, "F.silu", silu, 1.0, at_most=True)
    yield Floor(both, "float32", 16, crrelu_both, "F.silu", silu_both, 1.1, at_most=True)
    for operation, call in ((MODULE, module), (MODULE_GRAPH, module_graph)):
        ours, theirs = partial(call, CRRELU), partial(call, SILU)
        yield Floor(operation, "float32", 16, ours, "nn.SiLU", theirs, 1.15, at_most=True)
    placed_both = partial(forward_backward, PLACED)
    yield Floor(f"placed, {both}", "float32", mi, placed_both, "F.gelu", gelu_both, 1)
    for knots, times_gelu in ((32, 1), (256, 0.5)):
        table = partial(forward_backward, derived(knots))
        operation = f"{knots} knots, {both}"
        yield Floor(operation, "float32", mi, table, "F.gelu", gelu_both, times_gelu)


FLOORS = tuple(_floors())
AVX2_FLOORS = tuple(
    Floor(FORWARD, dtype, 2**20, partial(forward, CRRELU), "F.gelu", partial(forward, GELU), 1.5)
    for dtype in ("float32", "bfloat16")
)
_AVX2 = {"CRRELU_EXT_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2"}
# torch's F.gelu is oneDNN's, which takes what the processor has, whatever ATen is told to take.
AVX2_RIVALS = {
    "F.gelu, both AVX2": _AVX2 | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "F.gelu, only ATen AVX2": _AVX2,
}
TOTAL = len(FLOORS) + len(AVX2_FLOORS) * len(AVX2_RIVALS)


def measure(floor: Floor, quick: bool) -> Result:
    """Both sides in turn, some 10 ms or one call each, for as many rounds as fit the time.

    That is long beside the millisecond that a side needs to fill the caches again after the other's
    turn.
    """
    operands = make_operands("cpu", floor.dtype, floor.numel)
    calls = floor.ours(operands), floor.theirs(operands)
    once = [min(repeat(call, number=1, repeat=5)) for call in calls]  # also the warm-up
    numbers = [max(1, round(10e-3 / seconds)) for seconds in once]
    times: list[list[float]] = []
    end = perf_counter() + (0.3 if quick else 2.0)
    while len(times) < 7 or perf_counter() < end:
        sides = zip(calls, numbers, strict=True)
        times.append([timeit(call, number=number) / number for call, number in sides])

    def ratio(ours: float, theirs: float) -> float:
        return ours / theirs if floor.at_most else theirs / ours

    ratios = [ratio(*pair) for pair in times]
    our_times, their_times = zip(*times, strict=True)
    return Result(
        operation=floor.operation,
        dtype=floor.dtype,
        numel=floor.numel,
        rival=floor.rival,
        isa=crrelu_ext.build_info()["isa"],
        bound=floor.bound,
        at_most=floor.at_most,
        ratio=median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        ratio_of_fastest=ratio(min(our_times), min(their_times)),
        rounds=len(times),
        our_seconds=median(our_times),
        their_seconds=median(their_times),
    )


def results(quick: bool = False, *, keep: bool = True) -> Iterator[Result | Failure]:
    """Measures all floors, one after another; those for AVX2 where the processor has it.

    ``keep``: as this process keeps its freed memory, so does that for AVX2.
    """
    for floor in FLOORS:
        try:
            result: Result | Failure = measure(floor, quick)
        except Exception as error:  # of a compiler, or for want of memory
            result = Failure.of(floor, error)
        yield result
    if "avx2" in crrelu_ext.build_info()["isa_available"]:
        for rival, environment in AVX2_RIVALS.items():
            try:
                found = _measure_elsewhere(environment, quick, keep)
            except Exception as error:
                yield Failure.of(f"floors, {rival}", error)
            else:
                yield from (replace(result, rival=rival) for result in found)


def _measure_elsewhere(environment: dict[str, str], quick: bool, keep: bool) -> list[Result]:
    """AVX2_FLOORS in a process of their own: the libraries choose their ISA when they load.

    Raises:
        RuntimeError: it failed; the last line that it wrote.
    """
    with tempfile.TemporaryDirectory() as scratch:
        figures = Path(scratch, "figures.json")
        command = [sys.executable, "-m", "benchmarks.floors", "--avx2-only", "--json", str(figures)]
        run = subprocess.run(
            command + ["--quick"] * quick + ["--allocator-as-it-comes"] * (not keep),
            env=os.environ | environment,
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise RuntimeError(run.stderr.strip().rpartition("\n")[2])
        return [Result(**result) for result in json.loads(figures.read_text())["floors"]]


def terminal_table(results: list[Result]) -> Table:
    """The measured ratios beside their floors: where there is no room, names wrap, not figures."""
    table = Table(caption=LEGEND, box=rich.box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    for column in COLUMNS[2:]:
        table.add_column(column, no_wrap=True)
    for result in results:
        what, rival, *figures = result.cells()
        style = None if result.holds else "red"
        table.add_row(f"{what}\n  beside {rival}", *figures, style=style)
    return table


def main() -> None:
    """The command line: prints measured ratios beside their floors."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floors", description=__doc__)
    parser.add_argument(
        "--json", type=writable_file, metavar="FILE", help="also write the figures here"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument(
        "--allocator-as-it-comes",
        action="store_true",
        help="let the C library give freed memory back to the system, as it does by itself",
    )
    parser.add_argument("--avx2-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    need_native()

    facts = describe("python -m benchmarks.floors")
    keep = not arguments.allocator_as_it_comes
    if keep:
        facts["allocator"] = keep_freed_memory()
    if arguments.avx2_only:
        measured: Iterator[Result | Failure] = (measure(x, arguments.quick) for x in AVX2_FLOORS)
        total = len(AVX2_FLOORS)
    else:
        measured, total = results(arguments.quick, keep=keep), TOTAL
    console = Console()
    done: list[Result] = []
    failures: list[Failure] = []
    stopped = False
    # Drawn between the measurements only: a thread that draws would take its share of a core.
    with Progress(console=console, auto_refresh=False) as progress:
        task = progress.add_task("floors", total=total)
        try:
            for result in measured:
                if isinstance(result, Failure):
                    failures.append(result)
                else:
                    done.append(result)
                progress.update(task, advance=1, refresh=True)
        except KeyboardInterrupt:
            stopped = True

    console.print(terminal_table(done))
    for name, value in facts.items():
        console.print(f"{name}: {value}", highlight=False)
    for line in by_error(failures):
        console.print(f"Left out: {line}", style="red", markup=False, soft_wrap=True)
    if stopped:
        raise SystemExit(f"Stopped after {len(done)} of {total} floors; nothing was written.")
    if arguments.json:
        record = {"environment": facts, "floors": [asdict(result) for result in done]}
        with publish(arguments.json.parent) as scratch:
            (scratch / arguments.json.name).write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
