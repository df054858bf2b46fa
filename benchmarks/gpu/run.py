"""All that is to be known of the CUDA kernels, on the GPU that is here: ``make gpu OUT=folder``.

Builds for that GPU alone, runs the tests on the device, the benchmark, ncu, compute-sanitizer and
the other tests, in less than nine minutes, in the current Python and without a network. Leaves
logs.tar.gz, results.json, summary.json, README.md and the GPU's file for benchmarks/results in the
folder. ``--parts`` does some of it alone: what there was no time for. Without a GPU it says so;
``--dry-run`` then goes through the same parts on the CPU, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import torch
from parts import ROOT, Run, execute

HERE = Path(__file__).parent
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
SMALL = [sys.executable, str(HERE / "small.py")]
COLLECT_SECONDS = 60
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats")


def facts(dry_run: bool) -> dict[str, str]:
    found = {
        "GPU": "dry run, FIGURES MEAN NOTHING",
        "date": date.today().isoformat(),
        "command": f"make gpu ({Path(sys.executable).name} {' '.join(sys.argv)})",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    if dry_run:
        return found
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--id=0", "--query-gpu=driver_version,clocks.max.mem,power.limit"]
    query.append("--format=csv,noheader")
    try:
        driver = subprocess.check_output(query, text=True, timeout=20).strip()
    except (OSError, subprocess.SubprocessError):
        driver = "unknown"
    gpu = f"{properties.name}, {properties.multi_processor_count} multiprocessors"
    return found | {"GPU": gpu, "driver": driver}


def build(run: Run) -> bool:
    major, minor = torch.cuda.get_device_capability()
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    arch = f"{major}.{minor}"
    return run.do("build", command, 240, FORCE_CUDA="1", TORCH_CUDA_ARCH_LIST=arch)


def device_tests(run: Run, dry_run: bool) -> None:
    run.do("device-tests", [*PYTEST, "tests/cuda/test_device.py"], 120)


def benchmark(run: Run, dry_run: bool) -> None:
    results = run.folder / "results.json"
    results.unlink(missing_ok=True)  # of an earlier run
    command = [sys.executable, str(HERE / "measure.py"), str(results)]
    run.do("benchmark", [*command, *["--dry-run"] * dry_run], 265)


def ncu(run: Run, dry_run: bool) -> None:
    flags = [flag for section in SECTIONS for flag in ("--section", section)]
    # The clocks stay as they are: a profiler that fixes them needs rights, and slows others.
    flags += ["--clock-control", "none", "-k", "regex:_runs|_rows|fold"]
    if tool := cuda_tool(run, "ncu", dry_run):
        run.do("ncu", [tool, *flags, *SMALL, "large"], 60)


def sanitizers(run: Run, dry_run: bool) -> None:
    if tool := cuda_tool(run, "compute-sanitizer", dry_run):
        for check in ("memcheck", "racecheck", "synccheck", "initcheck"):
            command = [tool, "--tool", check, "--error-exitcode", "9"]
            if check != "initcheck":  # which must see who writes, torch's kernels too
                command += ["--kernel-name", "kns=crrelu"]
            # Else tensors share blocks of memory, and a step from one to the next goes unseen.
            run.do(check, [*command, *SMALL], 60, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def tests(run: Run, dry_run: bool) -> None:
    """The others' device axis; a few of the CPU's for a dry run."""
    ignored = tests_without_their_modules(run.logs / "collection.log")
    run.left_out += [f"{file}: {module} is not here" for file, module in ignored.items()]
    command = [*PYTEST, "--continue-on-collection-errors", "-k"]
    command.append("test_arguments" if dry_run else "cuda")
    if importlib.util.find_spec("xdist"):
        command += ["-n", "4", "--dist", "loadfile"]
    run.do("tests", [*command, *(file for file in test_files() if file not in ignored)], 150)


def test_files() -> list[str]:
    return [str(file.relative_to(ROOT)) for file in sorted(ROOT.glob("tests/test_*.py"))]


def tests_without_their_modules(log: Path) -> dict[str, str]:
    """The files of tests that import what is not here, and what that is, if pytest finds it soon
    enough."""
    execute([*PYTEST, "--collect-only", *test_files()], log, COLLECT_SECONDS, {})
    missing = {}
    for part in log.read_text(errors="replace").split(" ERROR collecting ")[1:]:
        if absent := re.search(r"ModuleNotFoundError: No module named '(\w+)", part):
            missing[part.split()[0]] = absent[1]
    return missing


def cuda_tool(run: Run, name: str, dry_run: bool) -> str | None:
    tool = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    if dry_run or not tool:
        run.left_out.append(f"{name}: {'a dry run' if dry_run else 'not here'}")
    return None if dry_run else tool


ALONE: dict[str, Callable[[Run, bool], None]] = {
    "device-tests": device_tests,
    "benchmark": benchmark,
    "ncu": ncu,
}
"""In the order of what matters: what is timed has the GPU to itself."""
TOGETHER = {"sanitizers": sanitizers, "tests": tests}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    names = [*ALONE, *TOGETHER]
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    dry_run = arguments.dry_run
    if not dry_run and not torch.cuda.is_available():
        sys.exit(
            f"There is no GPU that torch {torch.__version__} can use. "
            "--dry-run goes through the same parts on the CPU."
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # which ends the part too
    arguments.folder.mkdir(parents=True, exist_ok=True)
    run = Run(arguments.folder.resolve(), facts(dry_run))
    if dry_run or build(run):
        for name, part in ALONE.items():
            if name in arguments.parts:
                part(run, dry_run)
        with ThreadPoolExecutor() as pool:
            chosen = [part for name, part in TOGETHER.items() if name in arguments.parts]
            list(pool.map(lambda part: part(run, dry_run), chosen))
    print(run.write())
    print(f"See {run.folder / 'README.md'}")
    return 0 if run.succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
