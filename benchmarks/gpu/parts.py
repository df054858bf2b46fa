"""What a run has done so far, written down after each part: it may be stopped at any moment."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tarfile
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

from report import markdown, overview, replace_text, small_file

ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
SECONDS = 520
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck", "ncu")
TOOL_SECONDS = 30
"""What a tool of CUDA's needs to have come anywhere."""
REFUSED = re.compile(
    r"ERR_NVGPUCTRPERM|Device not supported|Failed to initialize the profiler|not permitted"
    r"|Target application terminated before first instrumented API call"
)
"""In the log of a tool of CUDA's: this machine does not let it work."""
TAIL = 30
"""Lines of a log that are printed where something went wrong."""


@dataclass(frozen=True)
class Part:
    name: str
    outcome: str
    seconds: float


def execute(
    command: Sequence[str], log: Path, seconds: float, environment: dict[str, str]
) -> int | None:
    """Returns the exit status, or None if it was stopped."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": PYTHONPATH} | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:  # what it has started would keep the GPU
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class Run:
    def __init__(self, folder: Path, facts: dict[str, str]) -> None:
        self.folder = folder
        self.facts = facts
        self.parts: list[Part] = []
        self.left_out: list[str] = []
        self.succeeded = True
        """But for what left_out names."""
        self._begin = time.monotonic()
        self._lock = Lock()
        self._scratch = tempfile.TemporaryDirectory()
        self.logs = Path(self._scratch.name)

    @property
    def seconds_left(self) -> float:
        return SECONDS - (time.monotonic() - self._begin)

    def do(self, name: str, command: Sequence[str], seconds: float, **environment: str) -> bool:
        """Runs a part with a log of its own; returns whether all went well."""
        log, begin = self.logs / f"{name}.log", time.monotonic()
        seconds = min(seconds, self.seconds_left)
        tool = name in TOOLS
        if seconds <= (TOOL_SECONDS if tool else 5):
            self.left_out.append(f"{name}: no time")
            return False
        print(f"{name} ...", flush=True)
        code = execute(command, log, seconds, environment)
        text = log.read_text(errors="replace")
        outcome, excused = "ok", False
        if code is None:
            outcome, excused = f"stopped after {seconds:.0f} s, see {log.name}", tool
        elif code:
            outcome = f"failed ({code}), see {log.name}"
            if tool and (refusal := REFUSED.search(text)):
                outcome, excused = f"refused: {refusal[0]}, see {log.name}", True
        if "tests" in name and text:
            outcome = f"{outcome}: {text.splitlines()[-1].strip('= ')}"
        with self._lock:
            self.parts.append(Part(name, outcome, time.monotonic() - begin))
            if excused:
                self.left_out.append(f"{name}: {outcome}")
            elif code != 0:
                self.succeeded = False
                print("\n".join(text.splitlines()[-TAIL:]))
            print(f"{name}: {outcome}", flush=True)
            self.write()
        return code == 0

    def write(self) -> str:
        """Writes all files of the folder; returns the report's beginning."""
        summary = {
            "facts": self.facts,
            "parts": [asdict(part) for part in self.parts],
            "left out": self.left_out,
        }
        replace_text(self.folder / "summary.json", json.dumps(summary, indent=1) + "\n")
        with tarfile.open(self.folder / "logs.tar.gz", "w:gz") as archive:
            archive.add(self.logs, "logs")
        results, figures = self.folder / "results.json", {}
        if any(part.name == "benchmark" for part in self.parts) and results.exists():
            figures = json.loads(results.read_text())
        try:
            report, beginning = markdown(summary, figures), overview(summary, figures)
            if figures:
                name = self.facts["GPU"].split(",")[0].replace(" ", "-")
                (self.folder / f"{name}.json").write_text(small_file(summary, figures))
        except Exception:  # the figures are in results.json all the same
            report = beginning = traceback.format_exc()
        (self.folder / "README.md").write_text(report)
        return beginning
