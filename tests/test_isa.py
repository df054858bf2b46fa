"""The kernels of every instruction set that this processor has.

One is chosen per process, by the environment variable CRRELU_EXT_ISA. This process runs the tests
of the kernels for the one that it has chosen, and here they run again for each of the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import crrelu_ext

from .oracle import Formula, to_numpy, ulp
from .test_accuracy import Elementwise, elementwise, every_number, float32_sample, float64_sample
from .tolerances import TOLERANCES

ROOT = Path(__file__).parent.parent
TESTS_OF_KERNELS = [
    f"tests/test_{name}.py"
    for name in ("accuracy", "at", "derived", "epsilon_gradient", "glu", "position", "strides")
]
INFO = crrelu_ext.build_info()
EPSILON = -0.5


def run(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a Python that uses this instruction set."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"CRRELU_EXT_ISA": isa},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("isa", [isa for isa in INFO["isa_available"] if isa != INFO["isa"]])
def test_kernels(isa: str) -> None:
    chosen = "not (cuda or compiled or opcheck or sharded)"
    options = ("-k", chosen, "--tb=short", "-p", "no:cacheprovider")
    process = run(isa, "-m", "pytest", *options, *TESTS_OF_KERNELS)
    assert process.returncode == 0, process.stdout
    assert f"crrelu_ext: {isa} of" in process.stdout


def sample(dtype: torch.dtype) -> Tensor:
    if dtype == torch.float64:
        return float64_sample(6000)
    return float32_sample(2**16) if dtype == torch.float32 else every_number(dtype)


def save(path: str) -> None:
    """What the instruction set of this process gives, by dtype."""
    print(crrelu_ext.build_info()["isa"])
    epsilon = torch.tensor([EPSILON])
    results = {
        dtype: tuple(elementwise(sample(dtype), epsilon.to(dtype), shared=False))
        for dtype in TOLERANCES
    }
    torch.save(results, path)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[torch.dtype, Elementwise]]:
    """By instruction set and dtype."""
    folder, found = tmp_path_factory.mktemp("results"), {}
    for isa in INFO["isa_available"]:
        path = str(folder / isa)
        process = run(isa, "-c", f"from tests.test_isa import save; save({path!r})")
        assert process.stdout == f"{isa}\n"
        found[isa] = torch.load(path)
    return found


def test_agreement(results: dict[str, dict[torch.dtype, Elementwise]], dtype: torch.dtype) -> None:
    """Any two differ by no more than either may differ from the exact values."""
    formula, tolerance = Formula(to_numpy(sample(dtype))), TOLERANCES[dtype]
    quantities = [
        (formula.value(EPSILON), tolerance.value),
        (formula.input_derivative(EPSILON), tolerance.derivative),
        (formula.epsilon_derivative(), tolerance.derivative),
    ]
    for isa, other in combinations(results, 2):
        for a, b, (terms, bound) in zip(
            results[isa][dtype], results[other][dtype], quantities, strict=True
        ):
            assert a is not None
            assert b is not None
            larger = np.fmax(np.abs(terms.first), np.abs(terms.second))
            same = (a == b) | (a.isnan() & b.isnan())
            allowed = bound * torch.from_numpy(ulp(larger, dtype))
            assert (same | ((a.double() - b.double()).abs() <= allowed)).all()
