"""The figures as one table in the terminal and as a Markdown page."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import rich.box
import rich.table
from rich.text import Text

from . import floors
from .activations import ACTIVATIONS, COMPILED, COPY, CRRELU
from .cases import (
    FORWARD,
    FORWARD_BACKWARD,
    FORWARD_OUT,
    MODULE,
    MODULE_GRAPH,
    OPERATIONS,
    Case,
    format_numel,
)
from .digits import ACTIVATIONS as TRAINED
from .failure import Failure, by_error
from .suites import MIN_ROUNDS, Timing
from .training.report import section, table
from .training.results import Result
from .training.summary import Summary, speeds, summarize

RIVALS = (*(name for name in ACTIVATIONS if name != CRRELU.name), COMPILED)
FIGURES = ("µs", "GB/s", "copy")
TERMINAL_SIZES = (16, 2**16, 2**20, 2**24)


@dataclass(frozen=True)
class Results:
    """Everything that one run has measured."""

    environment: dict[str, str]
    quick: bool
    seconds: float
    timings: list[Timing]
    floors: list[floors.Result]
    training: list[Result]
    failures: list[Failure]


@dataclass(frozen=True)
class Row:
    """CRReLU in one operation on one kind of tensor, beside the limit and the rivals."""

    operation: str
    device: str
    dtype: str
    numel: int
    seconds: float
    bandwidth: float  # bytes per second
    limit_share: float | None  # of the copy's bandwidth at this size, where it was measured
    times_as_fast: dict[str, float]  # by rival; below 1 it is the rival that is faster
    doubtful: frozenset[str]  # CRReLU or rivals, whose own timing is

    @property
    def group(self) -> str:
        return f"{self.operation}, {self.dtype}, {self.device}"

    def figures(self) -> list[str]:
        """Time, bandwidth and share of the limit, for FIGURES."""
        share = "" if self.limit_share is None else f"{self.limit_share:.0%}"
        time = _microseconds(self.seconds) + self._mark(CRRELU.name)
        return [time, f"{self.bandwidth / 1e9:.1f}", share]

    def ratio(self, rival: str) -> str:
        """How many times as fast as a rival, if that was measured."""
        if rival not in self.times_as_fast:
            return ""
        return _times(self.times_as_fast[rival]) + self._mark(rival)

    def ratios(self) -> list[str]:
        """How many times as fast as each of RIVALS."""
        return [self.ratio(rival) for rival in RIVALS]

    def _mark(self, name: str) -> str:
        return "?" if name in self.doubtful else ""


def rows(timings: list[Timing]) -> list[Row]:
    """One row for each of CRReLU's timings, in the order in which to show them."""
    by_case = {timing.case: timing for timing in timings}
    result = []
    for case, timing in by_case.items():
        if case.activation != CRRELU.name:
            continue
        key = (case.device, case.dtype, case.numel)
        limit = by_case.get(Case(FORWARD_OUT, *key, COPY))
        sides = {name: by_case.get(Case(case.operation, *key, name)) for name in RIVALS}
        rivals = {name: rival for name, rival in sides.items() if rival}
        result.append(
            Row(
                case.operation,
                *key,
                timing.median,
                timing.bandwidth,
                timing.bandwidth / limit.bandwidth if limit else None,
                {name: rival.median / timing.median for name, rival in rivals.items()},
                frozenset(x.case.activation for x in (timing, *rivals.values()) if x.doubtful),
            )
        )
    order = list(OPERATIONS)
    return sorted(
        result,
        key=lambda row: (row.device, order.index(row.operation), row.dtype != "float32", row.numel),
    )


def terminal_table(results: Results) -> rich.table.Table:
    """Speed at a few sizes, and training, in one table that fits 80 columns.

    Where it is narrower, names wrap and figures do not.
    """
    table = rich.table.Table(
        title="CRReLU, and how many times as fast as each rival it is (below 1: slower)",
        caption=f"copy: the share of a plain copy's bandwidth that it reaches. {_noise(results)}",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("", overflow="fold")
    for column in ("µs", "copy", *RIVALS):
        table.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
    shown = [row for row in rows(results.timings) if row.numel in TERMINAL_SIZES]
    for operation in (FORWARD, FORWARD_BACKWARD, MODULE, MODULE_GRAPH):
        table.add_row(Text(operation.replace("+", " + "), style="bold"))  # to wrap there
        for row in shown:
            if row.operation == operation:
                time, _, share = row.figures()
                ratios = (Text(x, style="red" if x.startswith("0") else "") for x in row.ratios())
                where = "" if row.device == "cpu" else f" {row.device}"
                name = f"{format_numel(row.numel)} {row.dtype}{where}"
                table.add_row(name, time, share, *ratios)
    table.add_row(Text("training", style="bold"))
    summaries = {TRAINED[x.activation]: x for x in summarize(results.training)}
    by_column = {
        CRRELU.name: summaries["CRReLU"],
        "GELU erf": summaries["GELU"],
        "ReLU": summaries["ReLU"],
    }
    figures: list[tuple[str, Callable[[Summary], str]]] = [
        ("images/s", lambda summary: f"{summary.rate:.0f}"),
        ("accuracy, %", lambda summary: f"{summary.last.mean:.1f}"),
        ("± over the seeds", _deviation),
    ]
    for name, figure in figures:
        cells = [figure(by_column[x]) if x in by_column else "" for x in (CRRELU.name, *RIVALS)]
        if any(cells):
            table.add_row(name, cells[0], "", *cells[1:])
    return table


def markdown(results: Results) -> str:
    """The report."""
    return "\n".join(_markdown(results)) + "\n"


def _markdown(results: Results) -> Iterator[str]:
    yield "# CRReLU beside its rivals"
    yield ""
    if results.quick:
        yield "**A quick run: few sizes, few rounds, and models that are not trained to the end.**"
        yield ""
    facts = results.environment | {"duration": f"{results.seconds:.0f} s"}
    yield from table(("", ""), list(facts.items()))
    if results.failures:
        yield "## Left out"
        yield ""
        yield "What could not be measured, and why:"
        yield ""
        yield from (f"- {line}" for line in by_error(results.failures))
        yield ""
    yield "## Where CRReLU loses"
    yield ""
    yield from losses(results) or ["Nowhere in this run."]
    yield ""
    yield "## Floors"
    yield ""
    if results.floors:
        yield "Two cores with AVX-512 are held to these. The two sides take turns round by round"
        yield "within one process; the median of the rounds' ratios counts. Where the ratio of the"
        yield "fastest rounds is far from it, the machine was not quiet."
        yield f"{floors.LEGEND}."
        yield ""
        yield from table(floors.COLUMNS, [result.cells() for result in results.floors])
    else:
        yield "Not measured: they are for the native kernels, and this installation has none."
        yield ""
    yield "## Speed"
    yield ""
    yield "A ratio says how many times as fast as the rival CRReLU is; below 1 the rival is faster."
    yield "Times are medians. GB/s counts what must be moved: forward reads the input and writes"
    yield "the output; backward reads grad_output and the input and writes grad_input. *copy* is"
    yield "the share of the bandwidth that `copy_` into an existing tensor reaches at that size;"
    yield "outputs are fresh tensors, except for `out=`, which no rival offers. *eager* and"
    yield "*compiled* are the composed formula, plain and under torch.compile, compiled for the one"
    yield "size. The gradients of all arguments are computed, epsilon's included. A module called"
    yield "with *no gradients* has its epsilon frozen; with the *graph recorded* input and epsilon"
    yield "require gradients. On a GPU a time includes launch and synchronization."
    yield _noise(results)
    yield ""
    all_rows = rows(results.timings)
    for device in dict.fromkeys(row.device for row in all_rows):
        yield f"![Speed over size on the {device}](speed-{device}.png)"
        yield ""
    for group in dict.fromkeys(row.group for row in all_rows):
        in_group = [row for row in all_rows if row.group == group]
        yield f"### {group[0].upper()}{group[1:]}"
        yield ""
        yield from table(
            ("elements", *FIGURES, *RIVALS),
            [(format_numel(row.numel), *row.figures(), *row.ratios()) for row in in_group],
        )
    yield from _training(results.training)


def losses(results: Results) -> list[str]:
    """One line for each measurement in which a rival does better, by as much as tables show."""
    lost: dict[tuple[str, str], list[str]] = {}
    for row in rows(results.timings):
        for rival, ratio in row.times_as_fast.items():
            if _loses(ratio):
                where = f"{format_numel(row.numel)} ({row.ratio(rival)})"
                lost.setdefault((row.group, rival), []).append(where)
    lines = [f"- {group}: {rival} at {', '.join(x)}" for (group, rival), x in lost.items()]
    for result in results.floors:
        if not result.holds:
            what, rival, measured, _, _, floor, _ = result.cells()
            lines.append(f"- floor missed: {what} beside {rival}: {measured}, not {floor}")
    summaries = summarize(results.training)
    ours = next(x for x in summaries if TRAINED[x.activation] == CRRELU.name)
    beside_ours = speeds(summaries, ours)
    for theirs in summaries:
        name, speed = TRAINED[theirs.activation], beside_ours[theirs.activation]
        if theirs is not ours:
            if theirs.last.mean > ours.last.mean:
                own, other = (x.text(2) for x in (ours.last, theirs.last))
                lines.append(f"- training, test accuracy: {own} %, {name} {other} %")
            if speed is not None and _loses(1 / speed):
                lines.append(f"- training, images/s: {name} ({_times(1 / speed)})")
    return lines


def _training(runs: list[Result]) -> Iterator[str]:
    yield "## Training"
    yield ""
    yield "A small vision transformer on scikit-learn's handwritten digits, everything but the"
    yield "activation equal; a difference within the deviations over the seeds says nothing. The"
    yield "activations took turns, an epoch each."
    yield ""
    yield from section(runs)
    yield "![Training curves](training.png)"
    yield ""
    yield "![The learned activations](activation.png)"


def _noise(results: Results) -> str:
    """How quiet the machine was: a busy one moves medians, and with them the ratios."""
    doubtful = sum(timing.doubtful for timing in results.timings)
    share = doubtful / len(results.timings)
    return (
        f"?: {MIN_ROUNDS} rounds at most, or a median over 1.5 times the fastest round (of CRReLU "
        f"at its time, of the rival at a ratio); {share:.0%} of all cases."
    )


def _deviation(summary: Summary) -> str:
    deviation = summary.last.deviation
    return "" if deviation is None else f"{deviation:.1f}"  # one seed has none


def _microseconds(seconds: float) -> str:
    microseconds = seconds * 1e6
    return f"{microseconds:.2f}" if microseconds < 100 else f"{microseconds:.0f}"


def _times(ratio: float) -> str:
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"


def _loses(times_as_fast: float) -> bool:
    return round(times_as_fast, 2) < 1
