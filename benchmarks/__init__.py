"""CRReLU measured beside its rivals: ``python -m benchmarks`` runs everything (``make bench``).

activations.py and cases.py hold the rivals and the calls that are timed, bench_*.py the
pytest-benchmark suites over them (``pytest benchmarks`` runs those alone), floors.py the ratios
that the project holds itself to, digits.py a small vision transformer on real images; report.py
and plots.py make the table, the Markdown and the pictures out of the figures. training/ trains
models of any size, with a command line of its own.
"""

from importlib.util import find_spec

_TRAINING = {
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "rich": "rich",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "transformers": "transformers",
    "yaml": "pyyaml",
}
_BENCH = {
    "cpuinfo": "py-cpuinfo",
    "pytest": "pytest",
    "pytest_benchmark": "pytest-benchmark",
}


def need(extra: str, modules: dict[str, str]) -> None:
    """Ends the program unless all packages of an extra are installed.

    Raises:
        SystemExit: with what is missing, and how to install it.
    """
    missing = [package for module, package in modules.items() if find_spec(module) is None]
    if missing:
        raise SystemExit(
            f"This needs {', '.join(missing)}. Install the extra `{extra}`, "
            f"from the repository root: pip install '.[{extra}]'"
        )


def need_bench() -> None:
    """For what measures operators; training needs less."""
    need("bench", _TRAINING | _BENCH)


need("training", _TRAINING)
