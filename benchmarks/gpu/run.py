"""All that is to be known of the CUDA kernels, on the GPU that is here: ``make gpu OUT=folder``.

Builds for that GPU alone, runs the tests on the device, the benchmark, compute-sanitizer and ncu,
in less than nine minutes, in the current Python and without a network. Leaves logs.tar.gz,
results.json, summary.json, README.md and the GPU's file for benchmarks/results in the folder.
Without a GPU it says so; ``--dry-run`` then goes through the same parts on the CPU, and its figures
mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
from report import markdown, small_file

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHONPATH = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
SECONDS = 520
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
TOOL_SECONDS = 45
"""What a tool of CUDA's needs to have come anywhere."""
REFUSED = re.compile(
    r"ERR_NVGPUCTRPERM|Device not supported|Failed to initialize the profiler|not permitted"
    r"|Target application terminated before first instrumented API call"
)
"""In the log of a tool of CUDA's: this machine does not let it work."""


@dataclass(frozen=True)
class Part:
    name: str
    outcome: str
    seconds: float


class Run:
    """What has been done so far, and what was left out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: list[Part] = []
        self.left_out: list[str] = []
        self._begin = time.monotonic()

    @property
    def succeeded(self) -> bool:
        """But for what left_out names."""
        done = ("ok", "refused")
        return all(
            part.outcome.startswith(done) or f"{part.name}: {part.outcome}" in self.left_out
            for part in self.parts
        )

    def pack_logs(self) -> None:
        """Into one archive: few files are easily carried home."""
        with tarfile.open(self.folder / "logs.tar.gz", "w:gz") as archive:
            for log in sorted(self.folder.glob("*.log")):
                archive.add(log, log.name)
                log.unlink()

    @property
    def seconds_left(self) -> float:
        return SECONDS - (time.monotonic() - self._begin)

    def do(self, name: str, command: list[str], seconds: float, **environment: str) -> str:
        """Runs a part with a log of its own; returns the outcome: "ok", "refused" or what went
        wrong."""
        log, begin = self.folder / f"{name.replace(' ', '-')}.log", time.monotonic()
        seconds = min(seconds, self.seconds_left)
        tool = name in (*TOOLS, "ncu")
        if seconds <= (TOOL_SECONDS if tool else 5):
            self.left_out.append(f"{name}: no time")
            return "no time"
        print(f"{name} ...", flush=True)
        with log.open("w") as output:
            try:
                code = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=os.environ | {"PYTHONPATH": PYTHONPATH} | environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=seconds,
                    check=False,
                ).returncode
                outcome = "ok" if code == 0 else f"failed ({code}), see {log.name}"
            except subprocess.TimeoutExpired:
                outcome = f"stopped after {seconds:.0f} s, see {log.name}"
        text = log.read_text(errors="replace")
        if tool and outcome.startswith("stopped"):
            self.left_out.append(f"{name}: {outcome}")
        elif tool and outcome != "ok" and (refusal := REFUSED.search(text)):
            outcome = f"refused: {refusal[0]}, see {log.name}"
            self.left_out.append(f"{name}: {outcome}")
        elif "tests" in name and text:
            outcome = f"{outcome}: {text.splitlines()[-1].strip('= ')}"
        self.parts.append(Part(name, outcome, time.monotonic() - begin))
        print(f"    {outcome}", flush=True)
        return outcome


def tests_without_their_modules() -> dict[str, str]:
    """The test modules that import what is not here, and what that is."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    log = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    ).stdout
    missing = {}
    for part in log.split(" ERROR collecting ")[1:]:
        if absent := re.search(r"ModuleNotFoundError: No module named '(\w+)", part):
            missing[part.split()[0]] = absent[1]
    return missing


def facts(dry_run: bool) -> dict[str, str]:
    found = {
        "date": date.today().isoformat(),
        "command": f"make gpu ({Path(sys.executable).name} {' '.join(sys.argv)})",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    if dry_run:
        return {"GPU": "none: A DRY RUN, figures mean nothing"} | found
    properties = torch.cuda.get_device_properties(0)
    driver = ""
    if smi := shutil.which("nvidia-smi"):
        query = [smi, "--query-gpu=driver_version,clocks.max.mem,power.limit", "--format=csv"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return found | {
        "GPU": f"{properties.name}, {properties.multi_processor_count} multiprocessors",
        "driver": driver.splitlines()[-1] if driver else "unknown",
    }


def measure(run: Run, dry_run: bool) -> None:
    """All parts, the benchmark before what may be refused."""
    python = sys.executable
    if not dry_run:
        major, minor = torch.cuda.get_device_capability()
        build = [python, "setup.py", "build_ext", "--inplace"]
        arch = f"{major}.{minor}"
        outcome = run.do("build", build, 240, FORCE_CUDA="1", TORCH_CUDA_ARCH_LIST=arch)
        if outcome != "ok":
            return

    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    run.do("device tests", [*pytest, "tests/cuda/test_device.py"], 120)
    results = run.folder / "results.json"
    command = [python, str(HERE / "measure.py"), str(results), "--seconds", "190"]
    run.do("benchmark", command + ["--dry-run"] * dry_run, 250)

    ignored = tests_without_their_modules()
    run.left_out += [f"{tests}: {module} is not here" for tests, module in ignored.items()]
    options = [
        "tests",
        "--continue-on-collection-errors",
        "--ignore=tests/cuda",
        *(f"--ignore={module}" for module in ignored),
    ]
    if importlib.util.find_spec("xdist"):
        pytest += ["-n", "4", "--dist", "loadfile"]
    # The others' device axis; a few of the CPU's for a dry run.
    run.do("tests", [*pytest, *options, "-k", "test_arguments" if dry_run else "cuda"], 130)
    if dry_run:
        run.left_out.append("compute-sanitizer and ncu: a dry run")
        return

    small = [python, str(HERE / "small.py")]
    if sanitizer := find_cuda_tool("compute-sanitizer"):
        for tool in TOOLS:
            checked = [sanitizer, "--tool", tool, "--error-exitcode", "9", *small]
            # Else tensors share blocks of memory, and a step from one to the next goes unseen.
            run.do(tool, checked, 60, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    else:
        run.left_out.append("compute-sanitizer: not here")
    if ncu := find_cuda_tool("ncu"):
        sections = ["SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats"]
        flags = [flag for section in sections for flag in ("--section", section)]
        # The clocks stay as they are: a profiler that fixes them needs rights, and slows others.
        flags += ["--clock-control", "none", "-k", "regex:_runs|_rows|fold"]
        run.do("ncu", [ncu, *flags, *small, "large"], 60)
    else:
        run.left_out.append("ncu: not here")


def find_cuda_tool(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        sys.exit(
            f"There is no GPU that torch {torch.__version__} can use. "
            "--dry-run goes through the same parts on the CPU."
        )
    arguments.folder.mkdir(parents=True, exist_ok=True)
    run = Run(arguments.folder.resolve())
    measure(run, arguments.dry_run)

    results = run.folder / "results.json"
    figures = json.loads(results.read_text()) if results.exists() else {}
    summary = {
        "facts": facts(arguments.dry_run),
        "parts": [asdict(part) for part in run.parts],
        "left out": run.left_out,
    }
    (run.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (run.folder / "README.md").write_text(markdown(summary, figures))
    run.pack_logs()
    if figures:
        name = "dry-run" if arguments.dry_run else torch.cuda.get_device_name().replace(" ", "-")
        (run.folder / f"{name}.json").write_text(small_file(summary, figures))
    print(f"See {run.folder / 'README.md'}")
    return 0 if run.succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
