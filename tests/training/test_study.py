"""Studies that are killed, that run out of room, that meet bad cells."""

from __future__ import annotations

import json
import math
import random
import resource
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from benchmarks.training import report, results, study
from benchmarks.training.__main__ import main
from benchmarks.training.files import append_line, held, read_lines
from benchmarks.training.loop import Nobody
from benchmarks.training.processes import join
from benchmarks.training.recipe import cells

from .small import ALONE, EAFO, GPT, VIT, count_events_apart, outcome, run_study

STUDY: dict[str, Any] = {**VIT, "activation": ["crrelu", "gelu"], "seed": [0, 1]}
KILLED: dict[str, Any] = {**STUDY, **EAFO, "activation": ["crrelu", "dynamic-eafo"]}


def table(folder: Path) -> list[list[str]]:
    """The report's first table but for the speeds."""
    page = report.write(folder, folder / "report").read_text().splitlines()
    start = next(i for i, line in enumerate(page) if line.startswith("| activation"))
    rows = [line.split(" | ") for line in page[start : page.index("", start)]]
    return [row[: rows[0].index("images/s |")] for row in rows]


def test_killed_at_random_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many kills as it takes, each at another point; the result is that of an unbroken run."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # for the preloading process
    events = count_events_apart(tmp_path / "whole", KILLED)
    chance = random.Random(7)
    kills = 0
    while True:
        # Half of the way at most, so that there is a second kill.
        kill_at = round(events * chance.uniform(0.05, 0.5))
        try:
            count_events_apart(tmp_path / "killed", KILLED, kill_at)
            break
        except BrokenProcessPool:
            kills += 1
            assert kills < 60
    assert kills >= 2
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    assert table(tmp_path / "killed") == table(tmp_path / "whole")
    left = {file.name for file in (tmp_path / "killed").rglob("*.pt")}
    assert left == {"weights.pt"}


def test_finished_cells_are_not_trained_again(tmp_path: Path) -> None:
    recipes = cells({**STUDY, "epochs": 2})
    first = list(study.run(tmp_path, recipes[:2], ALONE, lambda *_: Nobody()))
    left = tmp_path / "cells" / recipes[0].cell / "checkpoint.pt"
    left.touch()  # killed after its result was written
    numbers: list[int] = []

    def watching(_: object, number: int, of: int) -> Nobody:
        assert of == 4
        numbers.append(number)
        return Nobody()

    second = list(study.run(tmp_path, recipes, ALONE, watching))
    assert numbers == [3, 4]
    assert not left.exists()
    assert results.read(tmp_path) == first + second


def test_a_cell_that_diverges_is_told_of(tmp_path: Path) -> None:
    """It is a result like others: the next cells are trained, and the report says where."""
    recipes = cells({**STUDY, "learning_rate": 1e30, "clip": None, "warmup_epochs": 0, "seed": 0})
    recipes += cells({**STUDY, "seed": 0})
    run = list(study.run(tmp_path, recipes, ALONE, lambda *_: Nobody()))
    assert [result.diverged is None for result in run] == [False, False, True, True]
    page = report.write(tmp_path, tmp_path).read_text()
    assert "| 0 + 1 diverged |" in page
    assert "**Diverged: crrelu, seed 0.** The loss is nan at epoch 1, step 2 of 4" in page


def test_a_figure_that_is_none_leaves_the_report(tmp_path: Path) -> None:
    """As older results may have."""
    run_study(tmp_path, {**STUDY, "epochs": 2, "seed": [0, 1, 2]})
    lines = (tmp_path / results.FILE).read_text().splitlines()
    broken = json.loads(lines[2])
    broken["epochs"][-1]["metrics"]["accuracy"] = math.nan
    lines[2] = json.dumps(broken)
    (tmp_path / results.FILE).write_text("\n".join(lines) + "\n")
    rows = {row[0].removeprefix("| "): row for row in table(tmp_path)}
    name, seeds, last, best, to_gelu, *_ = rows[broken["recipe"]["activation"]]
    assert (name, seeds, last, to_gelu) == ("| crrelu", "3", "not finite", "not finite")
    assert "±" in best  # of an epoch before
    assert all("±" in cell for cell in rows["gelu"][2:4])


def test_other_data_are_another_study(tmp_path: Path) -> None:
    request = {**GPT, "dataset": "text", "model": "small-gpt", "tokenizer": "bytes", "epochs": 1}
    request |= {"warmup_epochs": 0, "steps_per_epoch": 1}
    for name in ("a", "b"):
        for split in ("train", "validation"):
            (tmp_path / name / split).mkdir(parents=True)
            (tmp_path / name / split / "all.txt").write_text(name * 20_000)
    study_of = tmp_path / "study"
    run_study(study_of, {**request, "data_dir": str(tmp_path / "a")})
    message = r"data_dir is .*b'; allowed is .*a', with which the result of .* or another STUDY"
    with pytest.raises(ValueError, match=message):
        run_study(study_of, {**request, "data_dir": str(tmp_path / "b")})

    class Stop(Nobody):
        def epoch(self, number: int, epoch: Any, learning_rate: float) -> None:
            raise KeyboardInterrupt

    begun = {**request, "epochs": 2, "checkpoint_every": 1, "data_dir": str(tmp_path / "a")}
    with pytest.raises(KeyboardInterrupt):
        list(study.run(tmp_path / "two", cells(begun), ALONE, lambda *_: Stop()))
    with pytest.raises(ValueError, match=r"allowed is .*a', with which .*checkpoint\.pt was made"):
        run_study(tmp_path / "two", {**begun, "data_dir": str(tmp_path / "b")})


def test_older_results_are_the_same_cells(tmp_path: Path) -> None:
    """In whose lines a number may be of another type than its knob."""
    request = {**VIT, "epochs": 2}
    run_study(tmp_path, request)
    file = tmp_path / results.FILE
    content = json.loads(file.read_text())
    assert content["recipe"]["warmup_epochs"] == 1.0
    content["recipe"]["warmup_epochs"] = 1
    file.write_text(json.dumps(content) + "\n")
    (result,) = results.read(tmp_path)
    assert [result.recipe.cell] == [one.cell for one in cells(request)]


def test_nothing_to_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", str(tmp_path), "--model-args", "{width: 16, depth: 1, hidden: 16}"]
    arguments += ["--epochs", "1", "--warmup-epochs", "0", "--steps-per-epoch", "1"]
    assert main(arguments) == 0
    assert "Nothing to train" not in capsys.readouterr().out
    assert main(arguments) == 0
    assert "has the results of all 1 cells" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "changes",
    [{"model_args": {"typo": 3}}, {"model_args": {"heads": 3}}, {"model_args": {"patch_size": 0}},
     {"dataset": "stdlib", "model_args": {"n_layers": 4}}, {"weights": "x{foo}"}],
    ids=str,
)  # fmt: skip
def test_what_there_is_not_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    name = "weights" if "weights" in changes else "model_args"
    with pytest.raises(ValueError, match=f"^{name} "):
        run_study(tmp_path, {"epochs": 1, "warmup_epochs": 0, **changes})


@pytest.mark.parametrize("content", [b"", b"junk"])
def test_weights_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"^weights is '.*w\.pt'"):
        run_study(tmp_path, {"weights": str(tmp_path / "w.pt")})


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with held(tmp_path / ".lock"), pytest.raises(RuntimeError, match="in use by another process"):
        run_study(tmp_path, STUDY)


def test_lines(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    assert read_lines(file) == []
    append_line(file, {"a": 1})
    with file.open("ab") as stream:
        stream.write(b'{"a": 2')  # killed here
    assert read_lines(file) == [{"a": 1}]
    append_line(file, {"a": 3})
    assert read_lines(file) == [{"a": 1}, {"a": 3}]


def test_full_disk_keeps_finished_results(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    append_line(file, {"a": 1})
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            append_line(file, {"a": "x" * 200})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before


@pytest.mark.parametrize("line", ["no json", "{}", '{"recipe": {"epochs": 0}, "epochs": []}', "3"])
def test_broken_results(tmp_path: Path, line: str) -> None:
    (tmp_path / results.FILE).write_text(line + "\n")
    with pytest.raises(ValueError, match=r"results\.jsonl, line 1"):
        results.read(tmp_path)


def test_results_are_json(tmp_path: Path) -> None:
    run_study(tmp_path, {**VIT, "epochs": 2})
    (line,) = (tmp_path / results.FILE).read_text().splitlines()
    assert json.loads(line)["recipe"]["dataset"] == "digits"


def test_missing_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with (
        pytest.raises(ValueError, match=r"device is 'cuda'.* sees 0; allowed are cpu"),
        join("cuda"),
    ):
        pass
