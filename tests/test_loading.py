"""What crrelu_ext does where its native library is missing, broken or built for another torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import crrelu_ext

PROBE = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, crrelu_ext
x = torch.tensor([-1.0, 2.0], requires_grad=True)
y = crrelu_ext.crrelu(x, torch.tensor([0.5]))
y.sum().backward()
print(json.dumps({
    "warnings": [str(w.message) for w in caught if w.category is RuntimeWarning],
    "info": crrelu_ext.build_info(),
    "output": y.tolist(),
    "grad_input": x.grad.tolist(),
}))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the installed package, to be damaged."""
    return shutil.copytree(Path(crrelu_ext.__file__).parent, tmp_path / "crrelu_ext")


def run(package: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs a new Python that imports this copy."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=package.parent,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=False,
    )


def assert_fallback(package: Path) -> str:
    """The composed formula works, and there is one warning, which is what build_info() reports."""
    process = run(package, "-c", PROBE)
    assert process.returncode == 0, process.stderr
    probe: dict[str, Any] = json.loads(process.stdout)
    # 0.5 x exp(-x²/2) and its derivative 0.5 (1 - x²) exp(-x²/2), beside max(0, x)
    assert probe["output"] == pytest.approx([-0.30326533, 2 + 0.13533528])
    assert probe["grad_input"] == pytest.approx([0, 1 - 1.5 * 0.13533528], abs=1e-7)
    assert not probe["info"]["native"]
    assert probe["info"]["isa"] is None
    assert probe["warnings"] == [probe["info"]["problem"]]
    return probe["info"]["problem"]


def test_this_installation_is_native() -> None:
    info = crrelu_ext.build_info()
    assert info["native"]
    assert info["problem"] is None
    assert info["torch_built_against"] == info["torch"] == torch.__version__
    assert info["isa"] in info["isa_available"]


def edit_config(package: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = package / "_build_config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


def test_built_against_another_torch(package: Path) -> None:
    edit_config(package, lambda config: config.update(torch="2.0.1"))
    (library,) = package.glob("_C.*.so")
    library.write_bytes(b"no library")  # which would be the problem, if it were loaded
    problem = assert_fallback(package)
    assert f"built against torch 2.0.1, but torch {torch.__version__} is running" in problem
    assert "pip install --force-reinstall --no-deps --no-cache-dir ." in problem


def test_installed_without_native_code(package: Path) -> None:
    edit_config(package, lambda config: config.update(native=False))
    assert (
        "installed without native code (CRRELU_EXT_NO_NATIVE=1, or a failed build)"
        in assert_fallback(package)
    )


@pytest.mark.parametrize("left", [None, "", '{"native": tr'], ids=repr)
def test_source_tree_that_was_never_built(package: Path, left: str | None) -> None:
    config = package / "_build_config.json"
    if left is None:
        config.unlink()
    else:
        config.write_text(left)  # by an interrupted build
    (package.parent / "csrc").mkdir()
    problem = assert_fallback(package)
    assert f"{package} was never built" in problem
    assert f"pip install -e {package.parent}" in problem


def test_library_that_does_not_load(package: Path) -> None:
    (library,) = package.glob("_C.*.so")
    library.write_bytes(b"no library")
    assert "does not load" in assert_fallback(package)


def test_unknown_isa_is_an_error_at_import(package: Path) -> None:
    process = run(package, "-c", "import crrelu_ext", CRRELU_EXT_ISA="sse")
    assert process.returncode == 1
    assert "RuntimeError" in process.stderr
    assert "CRRELU_EXT_ISA" in process.stderr
    assert "scalar" in process.stderr


def test_the_report_names_an_unknown_isa(package: Path) -> None:
    process = run(package, "-m", "crrelu_ext", CRRELU_EXT_ISA="sse")
    assert process.returncode == 1
    assert process.stderr == ""
    assert f"torch       {torch.__version__}" in process.stdout
    assert 'Problem: CRRELU_EXT_ISA is "sse", which is not an instruction set' in process.stdout


def test_report(package: Path) -> None:
    healthy = run(package, "-m", "crrelu_ext")
    assert healthy.returncode == 0, healthy.stdout
    assert "self-check  passed" in healthy.stdout
    (package / "_build_config.json").unlink()
    damaged = run(package, "-m", "crrelu_ext")
    assert damaged.returncode == 1
    assert "was never built" in damaged.stdout


def test_the_engine_is_there_for_those_who_ask() -> None:
    """As an attribute, though it needs scipy and is not imported with the package."""
    code = (
        "import sys, crrelu_ext; assert 'scipy' not in sys.modules; "
        "assert crrelu_ext.eafo.improve and 'scipy' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="module 'crrelu_ext' has no attribute 'nothing'"):
        crrelu_ext.nothing  # noqa: B018


def test_without_scipy_the_engine_says_what_is_missing() -> None:
    code = "import sys; sys.modules['scipy'] = None; import crrelu_ext; crrelu_ext.eafo"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "crrelu_ext.eafo and ActivationScheduler need scipy" in done.stderr
