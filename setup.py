"""Builds crrelu_ext._C from all sources under csrc; everything declarative is in pyproject.toml.

Environment variables: CRRELU_EXT_NO_NATIVE=1 leaves the native library out; FORCE_CUDA=1 makes it
an error if CUDA cannot be built, FORCE_CUDA=0 leaves CUDA out; CUDA_HOME, TORCH_CUDA_ARCH_LIST,
MAX_JOBS and CXX as torch.utils.cpp_extension reads them.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
from glob import glob
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py

HEADERS = glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.cuh", recursive=True)
CPU_SOURCES = sorted(glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp"))
CUDA_SOURCES = sorted(glob("csrc/cuda/*.cpp") + glob("csrc/cuda/*.cu"))
# Nothing of this machine's: ISA code names its target in the source. And a product and a sum are
# fused only where the source says so: else two copies of one formula may differ in the last bit.
FLAGS = ["-O3", "-g0", "-ffp-contract=off"]
NVCC_FLAGS = ["-O3", "-fmad=false"]


def record_build(package: Path, **facts: object) -> None:
    """Writes what was built, and against what, for crrelu_ext._ops to read."""
    (package / "_build_config.json").write_text(json.dumps(facts, indent=2) + "\n")


class BuildPython(build_py):
    """Copies the Python files; until a native build succeeds, the record says there is none."""

    def run(self) -> None:
        super().run()
        root = Path() if self.editable_mode else Path(self.build_lib)
        record_build(root / "crrelu_ext", native=False)


def find_cuda_home() -> str | None:
    """The toolkit's own folder, where cuda_runtime.h and libcudart are; None without a toolkit.

    The nvcc on PATH may be a link or a script in another folder, so nvcc itself is asked.
    """
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        dry_run = subprocess.run(
            [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True
        )
        candidates += re.findall(r"^#\$ TOP=(.*)$", dry_run.stderr, re.MULTILINE)
        candidates.append(os.path.dirname(os.path.dirname(nvcc)))
    for home in map(os.path.realpath, filter(None, [*candidates, "/usr/local/cuda"])):
        library = glob(f"{home}/lib*/libcudart.so") + glob(f"{home}/lib/*/libcudart.so")
        if library and os.path.exists(f"{home}/include/cuda_runtime.h"):
            return home
    return None


def cuda_arch_list() -> str:
    """TORCH_CUDA_ARCH_LIST, else the visible GPUs, else what is in common use, PTX for the rest."""
    import torch

    if given := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return given
    devices = range(torch.cuda.device_count())
    if visible := {torch.cuda.get_device_capability(index) for index in devices}:
        return ";".join(f"{major}.{minor}" for major, minor in sorted(visible)) + "+PTX"
    return "8.0;9.0;10.0+PTX"


def native_build() -> dict[str, Any]:
    """The extension and its build command, as arguments of setup()."""
    import torch

    force_cuda = os.environ.get("FORCE_CUDA", "")
    cuda_home = find_cuda_home() if torch.version.cuda else None
    if force_cuda == "1" and not cuda_home:
        raise SystemExit(
            f"FORCE_CUDA=1, but CUDA cannot be built: torch {torch.__version__} is built for CUDA "
            f"{torch.version.cuda}, toolkit found: {cuda_home}. "
            "Install a CUDA build of torch and its toolkit, or set CUDA_HOME to that folder."
        )
    with_cuda = cuda_home is not None and force_cuda != "0"
    if with_cuda:  # before cpp_extension is imported, which makes its own guess at CUDA_HOME
        os.environ["CUDA_HOME"] = cuda_home
        os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_arch_list()

    if not os.environ.get("CXX"):  # an empty one is no compiler, but cpp_extension would take it
        os.environ.pop("CXX", None)
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    facts = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda if with_cuda else None,
        "cuda_arch_list": re.split("[; ]", os.environ["TORCH_CUDA_ARCH_LIST"]) if with_cuda else [],
    }

    class BuildNative(BuildExtension):
        def finalize_options(self) -> None:
            super().finalize_options()
            # Objects are kept per torch, also by pip, so that ninja compiles only what has changed.
            self.build_temp = f"build/objects-{torch.__version__}"

        def run(self) -> None:
            try:
                super().run()
            except RuntimeError as error:  # under a traceback the compiler's words would be buried
                raise SystemExit(f"crrelu_ext was not built: {error}") from None
            named = os.environ.get("CXX", "c++")  # a program, perhaps with arguments
            command = [named] if shutil.which(named) else shlex.split(named)
            output = subprocess.check_output([*command, "--version"], text=True)
            compiler = output.splitlines()[0]
            package = Path(self.get_ext_fullpath("crrelu_ext._C")).parent
            record_build(package, native=True, compiler=compiler, **facts)

    extension = (CUDAExtension if with_cuda else CppExtension)(
        "crrelu_ext._C",
        CPU_SOURCES + (CUDA_SOURCES if with_cuda else []),
        depends=HEADERS,
        extra_compile_args={"cxx": FLAGS, "nvcc": NVCC_FLAGS},
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildNative}}


arguments: dict[str, Any] = {"cmdclass": {}}
# Where torch is missing an sdist is made, or nothing: the build backend refuses the rest.
if os.environ.get("CRRELU_EXT_NO_NATIVE") != "1" and importlib.util.find_spec("torch"):
    arguments = native_build()
arguments["cmdclass"]["build_py"] = BuildPython
setup(**arguments)
