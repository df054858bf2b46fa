"""benchmarks/gpu/run.py and what it runs, as far as they go without a GPU."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from .simt import ROOT

GPU = ROOT / "benchmarks/gpu"


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(GPU)
        yield


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_part_that_is_stopped_leaves_nothing_running(tmp_path: Path) -> None:
    parts, log = importlib.import_module("parts"), tmp_path / "log"
    code = "import subprocess as s; p = s.Popen(['sleep', '60']); print(p.pid, flush=True)"
    assert parts.execute(python(f"{code}; p.wait()"), log, 2, {}) is None
    status = Path("/proc", log.read_text().strip(), "stat")
    deadline = time.monotonic() + 10
    while status.exists() and status.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_all_is_written_after_each_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = importlib.import_module("parts").Run(tmp_path, {"GPU": "none"})
    assert not run.do("build", python("print('why'); raise SystemExit(3)"), 60)
    assert "why\nbuild: failed (3), see build.log\n" in capsys.readouterr().out
    (part,) = json.loads((tmp_path / "summary.json").read_text())["parts"]
    assert part["outcome"] in (tmp_path / "README.md").read_text()
    with tarfile.open(tmp_path / "logs.tar.gz") as archive:
        assert "logs/build.log" in archive.getnames()
    assert len(list(tmp_path.iterdir())) == 3
    assert run.do("benchmark", python(""), 60)  # of no figures
    assert not run.succeeded


def test_a_report_that_cannot_be_made_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = importlib.import_module("parts").Run(tmp_path, {"GPU": "none"})
    (tmp_path / "results.json").write_text('{"timings": 1}')
    assert run.do("benchmark", python(""), 60)
    assert "Traceback" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "summary.json").exists()


def test_what_a_tool_is_refused_is_no_failure(tmp_path: Path) -> None:
    run = importlib.import_module("parts").Run(tmp_path, {"GPU": "none"})
    run.do("ncu", python("raise SystemExit('ERR_NVGPUCTRPERM')"), 60)
    assert run.succeeded
    assert run.left_out == ["ncu: refused: ERR_NVGPUCTRPERM, see ncu.log"]


def test_a_slow_collection_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = importlib.import_module("run")
    slow = "import time; print('= ERROR collecting tests/test_a.py ='); time.sleep(60)"
    monkeypatch.setattr(run, "PYTEST", python(slow))
    monkeypatch.setattr(run, "COLLECT_SECONDS", 1)
    assert run.tests_without_their_modules(tmp_path / "log") == {}


def test_parts_can_be_chosen(tmp_path: Path) -> None:
    command = [sys.executable, str(GPU / "run.py"), str(tmp_path), "--dry-run", "--parts"]
    process = subprocess.run(
        [*command, "device-tests", "ncu"], capture_output=True, text=True, check=True
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [part["name"] for part in summary["parts"]] == ["device-tests"]
    assert summary["left out"] == ["ncu: a dry run"]
    assert "- ncu: a dry run" in process.stdout


def test_an_error_leaves_out_one_thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = importlib.import_module("measure")
    device, figures = measure.Device(dry_run=True), measure.Figures(tmp_path / "results.json")

    def fail(*_: object) -> None:
        raise ValueError("why\nand where")

    calls = ("forward", "good", lambda: None), ("forward", "bad", fail)
    monkeypatch.setattr(measure, "cases", lambda *_: iter(calls))
    measure.measure_kernels(device, [2**12], float("inf"), figures)
    assert [timing.name for timing in figures.timings] == ["good"] * 3
    monkeypatch.setattr(measure, "training_step", fail)
    measure.measure_models(device, ["any"], "eager", float("inf"), figures)
    written = json.loads(figures.file.read_text())["left out"]
    assert written[:1] == ["forward, float32, 4096, bad: ValueError: why"]
    assert written[3] == "any, eager, GELU and CRReLU: ValueError: why"


def test_calls_are_timed_in_turn() -> None:
    device = importlib.import_module("device")
    made: list[str] = []
    race = device.Race(device.Device(dry_run=True), nbytes=1)
    for name in "ab":
        race.add(name, [partial(made.append, name)])
    made.clear()
    assert [len(seconds) for seconds in race.run(rounds=2).values()] == [2, 2]
    assert made == ["a", "b", "a", "b"]


@pytest.mark.parametrize(("numel", "sets"), [(2**12, 64), (2**20, 17), (2**26, 1), (2**30, 1)])
def test_a_graph_lasts_long_beside_its_launch(numel: int, sets: int) -> None:
    device = importlib.import_module("device")
    count = device.count_of_calls(4 * numel, sets)  # a copy in bfloat16
    assert count % sets == 0
    assert count >= device.MOST_CALLS or count * 4 * numel / 4.8e12 > 1e-3
    assert count < device.MOST_CALLS + sets


def test_verdicts() -> None:
    report = importlib.import_module("report")
    names = {("forward", "copy_"): 2.0, ("backward", "add"): 3.0, ("backward", "CRReLU"): 3.1}
    timings = [
        {"operation": operation, "dtype": "float32", "numel": 2**26, "name": name, "seconds": time}
        for (operation, name), time in names.items()
    ]
    steps = [{"model": "ViT-Tiny", "mode": "eager", "seconds": {"dynamic": [1], "table": [1]}}]
    figures = {"streams": {"backward": 3}, "timings": timings, "steps": steps}
    copied, added, dynamic = report.targets(figures)
    assert copied[1:] == ["0.968", "yes"]
    assert added[1:] == ["0.968", ""]
    assert dynamic[1:] == ["1.000", "yes"]
