"""The figures of the benchmarks, from times made by hand: no test looks at the clock."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from rich.console import Console, RenderableType
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import crrelu_ext

for name in ("cpuinfo", "pytest_benchmark", "sklearn"):
    pytest.importorskip(name, reason="the extra `bench` is not installed")

from benchmarks import blocks, conftest, digits, environment, floors, report, session, suites  # noqa: E402
from benchmarks.activations import ACTIVATIONS, COMPILED, COPY, CRRELU, Activation  # noqa: E402
from benchmarks.cases import (  # noqa: E402
    FORWARD,
    FORWARD_BACKWARD,
    FORWARD_OUT,
    MODULE,
    MODULE_GRAPH,
    Case,
    make_operands,
)
from benchmarks.failure import Failure, by_error  # noqa: E402
from benchmarks.suites import Timing  # noqa: E402
from benchmarks.training.loop import Epoch  # noqa: E402
from benchmarks.training.results import Result  # noqa: E402

MI = 2**20
# By rival, how many times as fast CRReLU is: some faster, some slower.
RATIOS = {
    "GELU erf": 2.0, "GELU tanh": 8.0, "SiLU": 3.0, "ReLU": 0.5, "Mish": 5.0, "eager": 12.0,
    "compiled": 2.5,
}  # fmt: skip


def timing(
    name: str, median: float, *, operation: str = FORWARD, numel: int = MI, rounds: int = 50
) -> Timing:
    """One whose fastest round was a little faster."""
    case = Case(operation, "cpu", "float32", numel, name)
    return Timing(case, median, 0.9 * median, rounds)


def timings(operation: str = FORWARD, numel: int = MI) -> list[Timing]:
    """CRReLU and all rivals."""
    times = {CRRELU.name: 1e-4} | {name: ratio * 1e-4 for name, ratio in RATIOS.items()}
    return [timing(name, x, operation=operation, numel=numel) for name, x in times.items()]


def floor(ratio: float, bound: float, at_most: bool = False) -> floors.Result:
    return floors.Result(
        FORWARD, "float32", MI, "F.gelu", "avx512", bound, at_most, ratio, 0.25, 64.5, 3.75, 9, 1, 2
    )


def training(quick: bool, accuracies: dict[str, float], rates: dict[str, float]) -> list[Result]:
    """Of digits' cells; the seeds lie one percent apart."""
    return [
        Result(
            recipe,
            [
                Epoch(
                    0.5,
                    {"accuracy": accuracies[recipe.activation] + 0.01 * recipe.seed, "loss": 0.5},
                    rates[recipe.activation],
                    {"act": [0.01]} if recipe.activation == "crrelu" else {},
                )
            ]
            * recipe.epochs,
            None,
            "images",
            5,
            {"device": "cpu"},
        )
        for recipe in digits.recipes(quick)
    ]


@pytest.fixture
def results() -> report.Results:
    return report.Results(
        environment={"processor": "one"},
        quick=False,
        seconds=60,
        timings=[
            *timings(),
            *timings(FORWARD_BACKWARD),
            *(x for x in timings(MODULE, 16) if x.case.activation not in ("eager", COMPILED)),
            *(x for x in timings(MODULE_GRAPH, 16) if x.case.activation not in ("eager", COMPILED)),
            timing(COPY, 0.5e-4, operation=FORWARD_OUT),
        ],
        floors=[floor(2.25, 2), floor(1.75, 2)],
        training=training(
            False,
            {"crrelu": 0.90, "gelu": 0.95, "relu": 0.85},
            {"crrelu": 100.0, "gelu": 50.0, "relu": 400.0},
        ),
        failures=[],
    )


def shown(content: RenderableType, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(content)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_rows() -> None:
    """The medians count, not the fastest rounds; no rival is lost."""
    (row,) = report.rows([*timings(), timing(COPY, 0.5e-4, operation=FORWARD_OUT)])
    assert row.times_as_fast == pytest.approx(RATIOS)
    assert row.ratios() == ["2.00", "8.00", "3.00", "0.50", "5.00", "12.0", "2.50"]
    assert row.figures() == ["100", "83.9", "50%"]
    assert set(report.RIVALS) == set(RATIOS) == {*ACTIVATIONS, COMPILED} - {CRRELU.name}


@pytest.mark.parametrize(("fastest", "rounds"), [(0.5, 50), (0.9, 7)])
def test_doubtful_times_are_marked(fastest: float, rounds: int) -> None:
    """Of the rival at its ratio, of CRReLU at its time."""
    marked = {CRRELU.name, "SiLU"}
    some = [
        replace(x, fastest=fastest * x.median, rounds=rounds) if x.case.activation in marked else x
        for x in timings()
    ]
    (row,) = report.rows(some)
    assert row.figures()[0] == "100?"
    assert row.ratios() == ["2.00", "8.00", "3.00?", "0.50", "5.00", "12.0", "2.50"]


def test_losses(results: report.Results) -> None:
    lines = report.losses(results)
    assert lines[0] == "- forward, float32, cpu: ReLU at 1 Mi (0.50)"
    assert lines[1:4] == [
        f"- {operation}, float32, cpu: ReLU at {size} (0.50)"
        for operation, size in (
            (FORWARD_BACKWARD, "1 Mi"), (MODULE, "16"), (MODULE_GRAPH, "16")
        )
    ]  # fmt: skip
    assert lines[4:] == [
        "- floor missed: forward, 1 Mi float32 beside F.gelu: 1.75, not ≥ 2",
        "- training, test accuracy: 91.00 ± 1.00 %, GELU 96.00 ± 1.00 %",
        "- training, images/s: ReLU (0.25)",
    ]


def test_page(results: report.Results) -> None:
    page = report.markdown(results)
    assert "| 1 Mi | 100 | 83.9 | 50% | 2.00 | 8.00 | 3.00 | 0.50 | 5.00 | 12.0 | 2.50 |" in page
    assert "| forward, 1 Mi float32 | F.gelu | 1.75 | 0.25-64.50 | 3.75 | ≥ 2 | MISSED |" in page
    assert "### Module, graph recorded, float32, cpu" in page
    assert "Left out" not in page
    failed = [Failure(case, "E: no") for case in ("one", "two")]
    assert "- one; two: E: no" in report.markdown(replace(results, failures=failed))


@pytest.mark.parametrize("width", [60, 70, 80])
def test_no_figure_is_cut_off(results: report.Results, width: int) -> None:
    table = shown(report.terminal_table(results), width)
    assert "…" not in table
    line, *_ = (line for line in table.splitlines() if re.search("100 +50%", line))
    assert line.split()[-7:] == ["2.00", "8.00", "3.00", "0.50", "5.00", "12.0", "2.50"]
    table = shown(floors.terminal_table(results.floors), width)
    assert "…" not in table
    figures = ["1.75", "0.25-64.50", "3.75", "≥", "2", "MISSED"]
    assert figures in [line.split()[-6:] for line in table.splitlines()]


@pytest.mark.parametrize("width", [70, 80])
def test_floors_fit(width: int) -> None:
    """Names and figures are whole."""
    asked = [
        replace(floor(2.25, 2), operation=x.operation, numel=x.numel, rival=x.rival)
        for x in floors.FLOORS
    ]
    table = shown(floors.terminal_table(asked), width)
    assert "…" not in table
    figures = ["2.25", "0.25-64.50", "3.75", "≥", "2", "holds"]
    assert [line.split()[-6:] for line in table.splitlines()].count(figures) == len(asked)
    names = " ".join(f"{one.operation} {one.rival}".replace(",", "") for one in asked)
    assert set(names.split()) <= set(table.replace(",", "").split())


def test_training_beside_speed(results: report.Results) -> None:
    """One seed has no deviation."""
    lines = shown(report.terminal_table(results), 80).splitlines()
    assert [line.split() for line in lines if "images/s" in line] == [
        ["images/s", "100", "50", "400"]
    ]
    assert [line.split()[-3:] for line in lines if "±" in line] == [["1.0"] * 3]
    quick = training(
        True, dict.fromkeys(digits.ACTIVATIONS, 0.9), dict.fromkeys(digits.ACTIVATIONS, 1)
    )
    table = shown(report.terminal_table(replace(results, training=quick)), 80)
    assert "90.0" in table
    assert "±" not in table


@pytest.mark.parametrize(
    ("at_most", "ratio", "holds"),
    [(False, 1.9, False), (False, 2.1, True), (True, 1.9, True), (True, 2.1, False)],
)
def test_a_floor_holds(at_most: bool, ratio: float, holds: bool) -> None:
    assert floor(ratio, 2, at_most).holds == holds


class Clock:
    """A clock that only its own calls move, by the seconds that each of them is said to take."""

    def __init__(self) -> None:
        self.now = 0.0

    def call(self, seconds: Iterator[float]) -> Callable[[], None]:
        def call() -> None:
            self.now += next(seconds)

        return call

    def timeit(self, call: Callable[[], object], number: int) -> float:
        start = self.now
        for _ in range(number):
            call()
        return self.now - start

    def repeat(self, call: Callable[[], object], number: int, repeat: int) -> list[float]:
        return [self.timeit(call, number) for _ in range(repeat)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (floors, blocks):
        monkeypatch.setattr(module, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(floors, "timeit", clock.timeit)
    for module in (floors, conftest):
        monkeypatch.setattr(module, "repeat", clock.repeat)
    return clock


@pytest.mark.parametrize(
    ("at_most", "expected"), [(False, (2, 0.5, 4, 4)), (True, (0.5, 0.25, 2, 0.25))]
)
def test_measured_floors(clock: Clock, at_most: bool, expected: tuple[float, ...]) -> None:
    """The median of the rounds' ratios, whatever the disturbed ones were."""
    ours = clock.call(iter([0.05] * 5 + [0.05] * 5 + [0.2, 0.025]))
    theirs = clock.call(iter([0.1] * 5 + [0.1] * 7))
    one = floors.Floor(
        FORWARD, "float32", 16, lambda _: ours, "rival", lambda _: theirs, 1.5, at_most
    )
    found = floors.measure(one, quick=True)
    ratios = (found.ratio, found.ratio_min, found.ratio_max, found.ratio_of_fastest)
    assert ratios == pytest.approx(expected)
    assert (found.our_seconds, found.their_seconds) == pytest.approx((0.05, 0.1))
    assert found.rounds == 7
    assert found.holds


RIVALS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.gelu": F.gelu, "F.silu": F.silu, "nn.SiLU": F.silu, "copy_": lambda input: input,
}  # fmt: skip


@pytest.mark.parametrize("one", floors.FLOORS, ids=str)
def test_sides_of_a_floor(one: floors.Floor) -> None:
    """CRReLU and its rival, not the other way round; backward the gradients of either."""
    operands = make_operands("cpu", one.dtype, 16)
    if one.operation.startswith("forward") and one.operation != FORWARD_BACKWARD:
        assert_close(one.ours(operands)(), crrelu_ext.crrelu(operands.input, operands.epsilon))
        assert_close(one.theirs(operands)(), RIVALS[one.rival](operands.input))
    elif one.operation in (MODULE, MODULE_GRAPH):
        graph = one.operation == MODULE_GRAPH
        ours, theirs = one.ours(operands)(), one.theirs(operands)()
        assert isinstance(ours, Tensor)
        assert isinstance(theirs, Tensor)
        assert ours.requires_grad == theirs.requires_grad == graph
        assert_close(ours.detach(), crrelu_ext.crrelu(operands.input, torch.tensor([0.01])))
        assert_close(theirs.detach(), F.silu(operands.input))
    elif one.operation == FORWARD_BACKWARD and one.rival in RIVALS:
        ours, theirs = one.ours(operands)(), one.theirs(operands)()
        assert isinstance(ours, tuple)
        assert isinstance(theirs, tuple)
        assert (len(ours), len(theirs)) == (2, 1)


def test_modules_are_held_to_one_bound() -> None:
    bounds = {x.operation: (x.bound, x.at_most) for x in floors.FLOORS if x.rival == "nn.SiLU"}
    assert bounds == dict.fromkeys((MODULE, MODULE_GRAPH), (1.15, True))


def fail(*_: object) -> NoReturn:
    raise OSError("no compiler\nand much more")


def test_a_failing_floor_is_left_out(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def side(_: object) -> Callable[[], None]:
        return clock.call(iter([1.0] * 12))

    good = floors.Floor(FORWARD, "float32", 16, side, "good", side, 1)
    bad = replace(good, rival="bad", theirs=fail)
    monkeypatch.setattr(floors, "FLOORS", (bad, good))
    monkeypatch.setattr(floors, "_measure_elsewhere", lambda *_: fail())
    monkeypatch.setattr(floors, "AVX2_RIVALS", {"both AVX2": {}})
    info = crrelu_ext.build_info() | {"isa_available": ["avx2"]}
    monkeypatch.setattr(crrelu_ext, "build_info", lambda: info)
    first, second, third = floors.results(quick=True)
    assert first == Failure("floor, forward, 16 float32, beside bad", "OSError: no compiler")
    assert isinstance(second, floors.Result)
    assert second.rival == "good"
    assert third == Failure("floors, both AVX2", "OSError: no compiler")


def stopped(*found: object) -> Iterator[object]:
    yield from found
    raise KeyboardInterrupt


def test_stopped_floors_show_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = stopped(floor(1.75, 2), Failure("one", "E: no"))
    monkeypatch.setattr(floors, "results", lambda *_, **__: found)
    monkeypatch.setattr(floors, "describe", lambda _: {"threads": "2"})
    file = tmp_path / "figures.json"
    arguments = ["--allocator-as-it-comes", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["floors", *arguments])
    with pytest.raises(SystemExit, match=rf"Stopped after 1 of {floors.TOTAL} floors"):
        floors.main()
    printed = capsys.readouterr().out
    for text in ("1.75", "MISSED", "threads: 2", "Left out: one: E: no"):
        assert text in printed
    assert not file.exists()


@pytest.mark.parametrize("name", [".", "missing/figures.json"])
def test_where_floors_cannot_write(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    """Said before anything is measured."""
    monkeypatch.setattr(sys, "argv", ["floors", "--json", str(tmp_path / name)])
    monkeypatch.setattr(floors, "results", stopped)
    with pytest.raises(SystemExit, match="2"):
        floors.main()
    assert f"argument --json: {tmp_path / name}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_ratios_of_blocks(clock: Clock) -> None:
    ours, theirs = (clock.call(iter([seconds] * 99)) for seconds in (1.0, 4.0))
    assert blocks.ratios([ours, theirs]) == [0.25] * blocks.ROUNDS


class Recorder(nn.Module):
    """Keeps its name in a list when it is called."""

    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, input: Tensor) -> Tensor:
        self.calls.append(self.name)
        return input.clone()


def test_sides_of_a_block() -> None:
    calls: list[str] = []
    ours, theirs = (lambda name=name: Recorder(name, calls) for name in ("ours", "theirs"))
    for step in blocks.steps(blocks.Pair("", ours, theirs, torch.float32)):
        step()
    assert calls == ["ours", "theirs"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_blocks_have_both_gelus(dtype: torch.dtype, compiled: bool) -> None:
    of = {
        pair.name: pair
        for pair in blocks.pairs()
        if (pair.dtype, pair.compiled) == (dtype, compiled)
    }
    for form, approximate in (("tanh", "tanh"), ("erf", "none")):
        pair = of[f"CRReLU / GELU ({form})"]
        (rival,) = (x for x in pair.theirs().modules() if isinstance(x, nn.GELU))
        assert rival.approximate == approximate
        assert any(isinstance(x, crrelu_ext.CRReLU) for x in pair.ours().modules())


def test_stopped_blocks_show_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = iter([[0.5, 0.625, 0.75]])

    def ratios(_: object) -> list[float]:
        for found in measured:
            return found
        raise KeyboardInterrupt

    monkeypatch.setattr(blocks, "steps", lambda _: None)
    monkeypatch.setattr(blocks, "ratios", ratios)
    monkeypatch.setattr(blocks, "describe", lambda _: {})
    monkeypatch.setattr(sys, "argv", ["blocks"])
    with pytest.raises(SystemExit, match=f"Stopped after 1 of {len(blocks.pairs())} pairs"):
        blocks.main()
    assert "0.625" in capsys.readouterr().out


def test_calibration_is_by_the_fastest_call(clock: Clock) -> None:
    """Disturbed ones would leave one call a round; and there are seven rounds at the least."""
    call = clock.call(iter([1.0, 1e-5, 1.0, 2.0, 3.0]))
    assert conftest.calibrate(call, 0.1) == (100, 100)
    slow = clock.call(iter([1.0] * 5))
    assert conftest.calibrate(slow, 0.1) == (1, 7)


@pytest.fixture
def overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "SUITES", ("bench_overhead.py",))
    # Within a worker of xdist pytest-benchmark times nothing.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@pytest.mark.usefixtures("overhead")
def test_a_failing_rival_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACTIVATIONS, "Mish", Activation("Mish", fail, module=nn.Mish))
    totals: list[int] = []
    found, failures = suites.run(True, totals.append)
    assert {failure.case for failure in failures} == {
        f"{operation}, cpu, float32, 16, Mish" for operation in (FORWARD, FORWARD_BACKWARD)
    }
    assert {failure.error for failure in failures} == {"OSError: no compiler"}
    cases = {(x.case.operation, x.case.activation) for x in found}
    assert cases == {
        *((x, name) for x in (FORWARD, FORWARD_BACKWARD) for name in {*ACTIVATIONS} - {"Mish"}),
        *((x, name) for x in (MODULE, MODULE_GRAPH) for name in {*ACTIVATIONS} - {"eager"}),
    }
    assert totals == [len(found) + 2] * (len(found) + 2)
    assert all(x.fastest <= x.median and x.rounds >= suites.MIN_ROUNDS for x in found)


@pytest.mark.usefixtures("overhead")
@pytest.mark.filterwarnings("ignore:Not saving anything")
def test_nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Case, "bind", fail)
    with pytest.raises(RuntimeError, match=r"^Every case failed\. OSError: no compiler$"):
        suites.run(True, lambda _: None)


def test_failures_of_one_kind_share_a_line() -> None:
    failures = [Failure("a", "E: x"), Failure("b", "F: y"), Failure("c", "E: x")]
    assert list(by_error(failures)) == ["a; c: E: x", "b: F: y"]


def test_session(
    results: report.Results,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """What it writes; and its console shows progress while the suites' output is kept."""

    def measure(console: Console, quick: bool) -> report.Results:
        with contextlib.redirect_stdout(io.StringIO()):
            console.print("progress")
        return replace(results, quick=quick, failures=[Failure("one", "E: no")])

    monkeypatch.setattr(session, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--out", str(tmp_path)])
    session.main()
    printed = capsys.readouterr().out
    assert "progress" in printed
    assert "Left out: one: E: no" in printed
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["failures"] == [{"case": "one", "error": "E: no"}]
    assert (tmp_path / "report.md").read_text().startswith("# CRReLU beside its rivals")


def test_where_a_session_cannot_write(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--out", str(file)])
    with pytest.raises(SystemExit, match="2"):
        session.main()
    assert f"--out {file}" in capsys.readouterr().err


def test_a_processor_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.environment.cpuinfo.get_cpu_info", dict)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert environment.describe("x")["processor"].startswith(f"{platform.machine()}, ")


@pytest.mark.parametrize("module", ["blocks", "dynamic", "floors"])
def test_without_kernels(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says why, before anything is measured."""
    info = crrelu_ext.build_info() | {"native": False, "problem": "None were built."}
    monkeypatch.setattr(crrelu_ext, "build_info", lambda: info)
    monkeypatch.setattr(sys, "argv", [module])
    program = importlib.import_module(f"benchmarks.{module}")
    with pytest.raises(SystemExit, match=r"native kernels\. None were built\.$"):
        program.main()
