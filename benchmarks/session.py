"""The whole measurement, from the command line to the files: ``python -m benchmarks``."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import crrelu_ext

from . import digits, floors, plots, report, suites
from .environment import describe, keep_freed_memory
from .failure import Failure, by_error
from .publish import publish

RESULTS = Path(__file__).parent / "results" / "local"


def measure(console: Console, quick: bool) -> report.Results:
    """Runs the suites, the floors and the training, with a progress bar for each."""
    start = perf_counter()
    environment = describe("python -m benchmarks") | {"allocator": keep_freed_memory()}
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        # Drawn between measurements only: a thread that draws would take its share of a core.
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as progress:
        bar = progress.add_task("operators", total=None)
        timings, failures = suites.run(
            quick, lambda total: progress.update(bar, advance=1, total=total, refresh=True)
        )

        results = []
        if crrelu_ext.build_info()["native"]:
            bar = progress.add_task("floors", total=floors.TOTAL)
            for result in floors.results(quick):
                if isinstance(result, Failure):
                    failures.append(result)
                else:
                    results.append(result)
                progress.update(bar, advance=1, refresh=True)

        recipes = digits.recipes(quick)
        epochs = sum(recipe.epochs for recipe in recipes)
        bar = progress.add_task("training, epochs", total=epochs)
        runs = digits.run(recipes, lambda: progress.update(bar, advance=1, refresh=True))
    return report.Results(
        environment=environment,
        quick=quick,
        seconds=perf_counter() - start,
        timings=timings,
        floors=results,
        training=runs,
        failures=failures,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures CRReLU beside its rivals and writes a report.",
    )
    parser.add_argument("--quick", action="store_true", help="a look in two minutes")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="FOLDER", help="default: %(default)s"
    )
    arguments = parser.parse_args()
    try:
        with publish(arguments.out):
            pass  # a folder that cannot be written to is to fail before the measurement
    except OSError as error:
        parser.error(f"--out {arguments.out}: {error.strerror}; a folder to write to is needed")

    # This stream itself: while the suites run, sys.stdout is where their output is kept.
    console = Console(file=sys.stdout)
    try:
        results = measure(console, arguments.quick)
        with publish(arguments.out) as scratch:
            (scratch / "report.md").write_text(report.markdown(results))
            (scratch / "results.json").write_text(json.dumps(asdict(results), indent=1))
            plots.write(scratch, results.timings, results.training)
    except KeyboardInterrupt:
        raise SystemExit("Stopped; nothing was written.") from None
    except RuntimeError as error:
        raise SystemExit(f"Nothing was written. {error}") from None
    console.print(report.terminal_table(results))
    for line in by_error(results.failures):
        console.print(f"Left out: {line}", style="red", markup=False, soft_wrap=True)
    console.print(f"Report: {arguments.out / 'report.md'}", soft_wrap=True)
