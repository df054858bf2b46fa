"""Loads the native library `_C` where that is safe; knows what was built and what is wrong."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
import platform
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from crrelu_ext._nested import check_not_nested, is_jagged, on_values

_PACKAGE = Path(__file__).parent
_SOURCE = _PACKAGE.parent if (_PACKAGE.parent / "csrc").is_dir() else None
_MEND = (
    f"pip install -e {_SOURCE}"
    if _SOURCE
    else "pip install --force-reinstall --no-deps --no-cache-dir .  (in its source folder)"
)


def _read_build_config() -> dict[str, Any]:
    """What setup.py recorded about the build; empty in a source tree that was never built, or
    whose build was interrupted."""
    try:
        config: dict[str, Any] = json.loads((_PACKAGE / "_build_config.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return config


def _load() -> tuple[ModuleType | None, str | None]:
    """The native library, or None and why there is none.

    The versions are compared before the library is loaded: torch's C++ ABI differs from version to
    version, and a library built for another one may crash.
    """
    if not _config:
        return None, f"{_PACKAGE} was never built, and Python imports it before any installed copy"
    if not _config["native"]:
        why = "CRRELU_EXT_NO_NATIVE=1, or a failed build"
        return None, f"it was installed without native code ({why})"
    if _config["torch"] != torch.__version__:
        built = _config["torch"]
        return None, f"it was built against torch {built}, but torch {torch.__version__} is running"
    try:
        return importlib.import_module("crrelu_ext._C"), None
    except ImportError as error:
        return None, f"its native library does not load: {error}"


_config = _read_build_config()
_C, _reason = _load()
native = _C is not None
"""Whether the native kernels are loaded; without them everything takes the composed formula."""
problem = _reason and f"crrelu_ext runs without its native kernels: {_reason}. To mend it: {_MEND}"
"""What is wrong with this installation and what mends it, or None."""

if problem:
    warnings.warn(problem, RuntimeWarning, stacklevel=2)
if _C is not None:
    try:
        _C.isa()  # an unknown or unsupported CRRELU_EXT_ISA raises here, not in the first call
    except RuntimeError as error:
        if not (sys.argv[:1] == ["-m"] and "crrelu_ext" in sys.orig_argv):
            raise
        _C, native, problem = None, False, str(error)  # for `python -m crrelu_ext` to report

try:
    __version__ = importlib.metadata.version("crrelu-ext")
except importlib.metadata.PackageNotFoundError:  # a source tree that was never installed
    __version__ = "unknown"


def general(name: str, inputs: tuple[Any, ...], others: tuple[Any, ...], **out: Any) -> Any:
    """Calls an operator through torch.ops, for arguments that are no plain tensors.

    Jagged inputs are taken by their values, other nested tensors refused. The first time that
    DTensors can be among the arguments they learn how to shard the operator; not at import, since
    to import torch.distributed.tensor takes half as long as torch itself.
    """
    operator = getattr(torch.ops.crrelu_ext, name)
    if any(is_jagged(x) for x in inputs) and not out:
        return on_values(operator, name, inputs, *others)
    arguments = (operator.out if out else operator.default)._schema.arguments
    for argument, given in zip(arguments, (*inputs, *others, *out.values()), strict=True):
        if isinstance(given, Tensor):
            check_not_nested(name, argument.name, given)
    if "torch.distributed.tensor" in sys.modules:
        _register_sharding()
    return operator(*inputs, *others, **out)


@functools.cache
def _register_sharding() -> None:
    from crrelu_ext import _sharding

    _sharding.register()


def build_info() -> dict[str, Any]:
    """What is installed and what it runs on.

    Returns:
        A dict of plain values: ``version``, ``python``; ``torch``, the version that is running,
        and ``torch_built_against``; ``native``, whether the native kernels are loaded; ``problem``,
        what is wrong and what mends it, or None; ``isa_available`` and ``isa``, the instruction
        sets this processor can use and the one chosen (environment variable ``CRRELU_EXT_ISA``);
        ``cuda``, the CUDA version of the kernels or None, and ``cuda_arch_list``, the architectures
        they were compiled for; ``compiler``; ``threads``, as many as torch uses. Without native
        kernels the entries about them are None or empty.
    """
    return {
        "version": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torch_built_against": _config.get("torch"),
        "native": native,
        "problem": problem,
        "isa_available": _C.isa_available() if _C else [],
        "isa": _C.isa() if _C else None,
        "cuda": _config.get("cuda"),
        "cuda_arch_list": _config.get("cuda_arch_list", []),
        "compiler": _config.get("compiler"),
        "threads": torch.get_num_threads(),
    }
