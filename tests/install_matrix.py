"""Each way to install, tried in an environment of its own: `make install-matrix`.

pytest does not collect this file by itself: it makes environments with torch and compiles the
library several times, which takes minutes. What is built is judged by `python -m crrelu_ext`, run
away from the source, with its one warning turned into an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
TORCH = torch.__version__.partition("+")[0]
OTHER_TORCH = "2.11.0" if TORCH != "2.11.0" else "2.13.0"
OURS = ("CRRELU_", "CXX", "FORCE_CUDA", "PYTHON", "VIRTUAL_ENV")  # variables of the test run itself
NOT_SOURCE = shutil.ignore_patterns(
    *(".git", ".venv*", "build", "dist", "local", "*.egg-info", "*.so", "_build_config.json"),
    *("__pycache__", ".benchmarks", ".hypothesis", ".*_cache"),
)


class Environment:
    """A virtual environment, and what a user types in it."""

    def __init__(self, path: Path) -> None:
        self.bin = path / "bin"
        if not path.exists():
            subprocess.run([sys.executable, "-m", "venv", path], check=True)

    def run(self, *arguments: str | Path, **variables: str) -> tuple[int, str]:
        """Runs this environment's Python away from the source; its status and all it printed."""
        inherited = {name: os.environ[name] for name in os.environ if not name.startswith(OURS)}
        activated = {"PATH": f"{self.bin}:{os.environ['PATH']}"}
        result = subprocess.run(
            [self.bin / "python", *arguments],
            cwd=self.bin,
            env=inherited | activated | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(result.stdout)
        return result.returncode, result.stdout

    def pip_install(self, *arguments: str | Path, **variables: str) -> str:
        status, printed = self.run("-m", "pip", "install", *arguments, **variables)
        assert status == 0
        return printed

    def assert_native(self) -> None:
        """The native library is there, built for the torch that was there, and computes right."""
        status, printed = self.run("-W", "error::RuntimeWarning", "-m", "crrelu_ext")
        assert status == 0
        running = re.search(r"^torch +(.*)$", printed, re.MULTILINE)
        assert running
        assert running[1].startswith(TORCH), "pip has replaced torch"
        assert f"native      yes, built against torch {running[1]}\n" in printed

    def assert_fallback(self, reason: str) -> None:
        """There are no native kernels, for this reason; the composed formula computes right."""
        status, printed = self.run("-m", "crrelu_ext")
        assert status == 1
        assert "native      no" in printed
        assert "self-check  passed" in printed
        assert f"\nProblem: crrelu_ext runs without its native kernels: {reason}" in printed


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return shutil.copytree(ROOT, tmp_path / "source", ignore=NOT_SOURCE)


@pytest.fixture
def bare(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "bare")


@pytest.fixture(scope="session")
def torch_installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torch") / "venv"
    Environment(path).pip_install(f"torch=={TORCH}")
    return path


@pytest.fixture
def with_torch(tmp_path: Path, torch_installed: Path) -> Environment:
    """An environment of its own for each test; the files of torch are the same ones, linked."""
    shutil.copytree(torch_installed, tmp_path / "venv", symlinks=True, copy_function=os.link)
    return Environment(tmp_path / "venv")


def test_isolated(with_torch: Environment, source: Path) -> None:
    printed = with_torch.pip_install("-v", source)
    assert "Collecting torch" not in printed, "pip fetched another torch to build against"
    with_torch.assert_native()


def test_not_isolated(with_torch: Environment, source: Path, tmp_path: Path) -> None:
    with_torch.pip_install("ninja")
    spy = tmp_path / "spy" / "ninja"
    spy.parent.mkdir()
    spy.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/ninja.log\nexec {with_torch.bin}/ninja "$@"\n'
    )
    spy.chmod(0o755)
    path = f"{spy.parent}:{with_torch.bin}:{os.environ['PATH']}"
    with_torch.pip_install("--no-build-isolation", source, PATH=path, MAX_JOBS="1")
    with_torch.assert_native()
    assert "-j 1" in (tmp_path / "ninja.log").read_text()


def test_editable(with_torch: Environment, source: Path) -> None:
    with_torch.pip_install("--editable", source)
    with_torch.assert_native()
    with (source / "crrelu_ext" / "__init__.py").open("a") as init:
        init.write("\nprint('edited')\n")
    assert "edited" in with_torch.run("-c", "import crrelu_ext")[1]


def test_sdist(with_torch: Environment, bare: Environment, source: Path, tmp_path: Path) -> None:
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    bare.pip_install("build")
    status, _ = bare.run("-m", "build", "--sdist", "--outdir", tmp_path / "dist", source)
    assert status == 0, "the sdist needs neither torch nor a compiler"
    (sdist,) = (tmp_path / "dist").iterdir()
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert files - packed == set(), "the sdist holds everything"
    # pip keeps wheels that it built from an sdist, without regard to torch: hence no cache.
    with_torch.pip_install("--no-cache-dir", sdist)
    with_torch.assert_native()


def test_without_torch(bare: Environment, source: Path) -> None:
    status, printed = bare.run("-m", "pip", "install", source)
    assert status == 1
    assert "torch is not installed" in printed
    assert "pip install torch" in printed
    assert "CRRELU_EXT_NO_NATIVE=1" in printed
    assert "Collecting torch" not in printed


def test_without_compiler(with_torch: Environment, source: Path) -> None:
    status, printed = with_torch.run("-m", "pip", "install", source, PATH=str(with_torch.bin))
    assert status == 1
    assert "there is no C++ compiler" in printed
    assert "apt install g++" in printed


def test_compiler_error(with_torch: Environment, source: Path) -> None:
    """The compiler's words are among the last lines."""
    (source / "csrc" / "autograd.cpp").write_text("#error broken here\n")
    status, printed = with_torch.run("-m", "pip", "install", source, MAX_JOBS="1")
    assert status == 1
    assert "#error broken here" in printed
    assert "crrelu_ext was not built: Error compiling objects" in printed
    assert "Traceback" not in printed


def test_no_native(with_torch: Environment, source: Path) -> None:
    with_torch.pip_install(source, PATH=str(with_torch.bin), CRRELU_EXT_NO_NATIVE="1")
    with_torch.assert_fallback(
        "it was installed without native code (CRRELU_EXT_NO_NATIVE=1, or a failed build)"
    )


def test_another_torch(with_torch: Environment, source: Path) -> None:
    with_torch.pip_install(source)
    with_torch.pip_install(f"torch=={OTHER_TORCH}")
    with_torch.assert_fallback(f"it was built against torch {TORCH}")
