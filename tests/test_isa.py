"""The kernels of every instruction set that this processor has.

One is chosen per process, by the environment variable CRRELU_EXT_ISA. This process runs the tests
of the kernels for the one that it has chosen, and here they run again for each of the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import crrelu_ext

from .oracle import Formula, to_numpy, ulp
from .tolerances import TOLERANCES

HERE = Path(__file__).parent
OF_THE_KERNELS = (
    "test_accuracy.py",
    "test_epsilon_gradient.py",
    "test_position.py",
    "test_strides.py",
)
INFO = crrelu_ext.build_info()


def run(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a Python that uses this instruction set."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=HERE.parent,
        env=os.environ | {"CRRELU_EXT_ISA": isa},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("isa", [isa for isa in INFO["isa_available"] if isa != INFO["isa"]])
def test_kernels(isa: str) -> None:
    files = [str(HERE / name) for name in OF_THE_KERNELS]
    process = run(isa, "-m", "pytest", "-q", "-k", "cpu and not huge", "--tb=short", *files)
    assert process.returncode == 0, process.stdout
    assert f"crrelu_ext: {isa} of" in process.stdout


@pytest.mark.parametrize("isa", INFO["isa_available"])
def test_choice(isa: str) -> None:
    process = run(isa, "-c", "import crrelu_ext; print(crrelu_ext.build_info()['isa'])")
    assert process.stdout == f"{isa}\n"
