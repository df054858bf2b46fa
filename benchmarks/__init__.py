"""CRReLU measured beside its rivals: ``python -m benchmarks`` runs everything (``make bench``).

activations.py and cases.py hold the rivals and the calls that are timed, bench_*.py the
pytest-benchmark suites over them (``pytest benchmarks`` runs those alone), floors.py the ratios
that the project holds itself to, training/ a small vision transformer on real images; report.py and
plots.py make the table, the Markdown and the pictures out of the figures.
"""

from importlib.util import find_spec

_EXTRA = {
    "matplotlib": "matplotlib",
    "pytest": "pytest",
    "pytest_benchmark": "pytest-benchmark",
    "rich": "rich",
    "sklearn": "scikit-learn",
}
_missing = [package for module, package in _EXTRA.items() if find_spec(module) is None]
if _missing:
    raise SystemExit(
        f"The benchmarks need {', '.join(_missing)}. Install the extra `bench`, "
        "from the repository root: pip install '.[bench]'"
    )
