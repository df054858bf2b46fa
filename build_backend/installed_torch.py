"""The build backend (PEP 517): setuptools, building against the torch that is already installed.

pip builds in isolation, where the environment's torch cannot be seen, and `requires = ["torch"]`
would fetch the newest torch and build against that. torch's C++ ABI differs from version to
version, so such a library does not load. This backend asks for no torch. It lets the isolated build
see the environment's packages, behind those of the build itself, and refuses early, and in words,
to build where something is missing.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import setuptools
from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  (hooks that need no torch)
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)

OLDEST_SETUPTOOLS = 77  # both as in pyproject.toml
OLDEST_TORCH = (2, 11)


def environment_path() -> list[str]:
    """sys.path as this interpreter has it outside pip's isolation, which is these two variables."""
    isolation = ("PYTHONPATH", "PYTHONNOUSERSITE")
    environment = {name: value for name, value in os.environ.items() if name not in isolation}
    command = [sys.executable, "-c", "import sys; print(*sys.path, sep='\\n')"]
    return subprocess.check_output(command, env=environment, text=True).splitlines()


def what_is_missing() -> str | None:
    """What the native build lacks here and how to get it, or None."""
    compiler = os.environ.get("CXX") or "c++"
    try:
        torch_version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return (
            "torch is not installed in this environment.\n"
            "crrelu_ext is built against the torch that it runs with, so install that first:\n"
            "    pip install torch\n"
            "If torch is installed, this installer hides it: install setuptools and ninja too, and "
            "add --no-build-isolation."
        )
    if tuple(map(int, torch_version.split(".")[:2])) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return f"torch {torch_version} is too old.\nInstall torch {oldest} or newer first."
    if not any(map(shutil.which, [compiler, *shlex.split(compiler)[:1]])):
        return (
            f"there is no C++ compiler: {compiler!r} is not on PATH.\n"
            "Install one (Debian, Ubuntu: apt install g++), or name one in the variable CXX."
        )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return (
            "Python's C headers are missing.\n"
            "Install them (Debian, Ubuntu: apt install python3-dev)."
        )
    return None


def checked(hook: Callable[..., str]) -> Callable[..., str]:
    """The hook, after a check that it can succeed."""

    @functools.wraps(hook)
    def checked_hook(*args: Any, **kwargs: Any) -> str:
        if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:  # not isolated
            sys.exit(
                f"\ncrrelu_ext cannot be built: setuptools {setuptools.__version__} is too old.\n"
                f"Update it: pip install 'setuptools>={OLDEST_SETUPTOOLS}'\n"
            )
        native = os.environ.get("CRRELU_EXT_NO_NATIVE") != "1"
        if native and (missing := what_is_missing()):
            sys.exit(
                f"\ncrrelu_ext cannot be built: {missing}\n"
                "Or set CRRELU_EXT_NO_NATIVE=1 to install the slower pure-Python fallback.\n"
            )
        return hook(*args, **kwargs)

    return checked_hook


sys.path += [path for path in environment_path() if path and path not in sys.path]

# pip asks for the metadata first, before it fetches any dependency.
prepare_metadata_for_build_wheel = checked(build_meta.prepare_metadata_for_build_wheel)
prepare_metadata_for_build_editable = checked(build_meta.prepare_metadata_for_build_editable)
build_wheel = checked(build_meta.build_wheel)
build_editable = checked(build_meta.build_editable)
