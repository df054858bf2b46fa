"""What a measurement ran on."""

import ctypes
import os
import platform
import shlex
import sys
from datetime import date
from pathlib import Path

import torch

import crrelu_ext

from . import need_bench

need_bench()

import cpuinfo  # noqa: E402

# Parameters of glibc's mallopt, from its malloc.h, and the largest block it keeps on its heap.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _LARGEST_KEPT = -1, -3, 32 * 2**20


def keep_freed_memory() -> str:
    """Makes glibc keep freed blocks of up to 32 MiB in this process; says what is now done.

    By itself it gives them back to the system when they happen to lie on top of its heap. Then
    each call touches fresh pages, which on a virtual machine takes 20 times as long as the
    arithmetic, and chance says whose calls: which is no property of an activation function.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt and mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_TRIM_THRESHOLD, 2**30):
        return "keeps freed blocks of up to 32 MiB"
    return "as it comes"


def need_native() -> None:
    """Ends the program unless the native kernels are here.

    Raises:
        SystemExit: they are not; why not.
    """
    info = crrelu_ext.build_info()
    if not info["native"]:
        raise SystemExit(f"This measures the native kernels. {info['problem']}")


def describe(program: str) -> dict[str, str]:
    """The facts that a figure needs beside it, in the order in which to print them.

    ``program`` is how this process was started, without its arguments.
    """
    info = crrelu_ext.build_info()
    facts = {
        "command": shlex.join([*program.split(), *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
        "crrelu_ext": f"{info['version']}, ISA {info['isa']}",
        "torch": f"{torch.__version__}, ISA {torch.backends.cpu.get_cpu_capability()}",
        "python": platform.python_version(),
        "system": platform.platform(),
        "huge pages": _transparent_huge_pages(),
        "load before": f"{os.getloadavg()[0]:.1f} processes",
    }
    if not info["native"]:
        facts["crrelu_ext"] = f"{info['version']}, NOT NATIVE: CRReLU is the composed formula here"
    if torch.cuda.is_available():
        facts["GPU"] = torch.cuda.get_device_name()
    return facts


def _processor() -> str:
    """Its name, or where none can be found its kind: cpuinfo does not always find one."""
    found = cpuinfo.get_cpu_info().get("brand_raw")
    return found or platform.processor() or platform.machine()


def _transparent_huge_pages() -> str:
    """What the kernel does about them: it decides what a fresh large tensor costs."""
    try:
        modes = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "unknown"
    return modes.partition("[")[2].partition("]")[0]
