"""csrc/cuda/kernels.cu on the machine of tests/cpp/simt: compiled by the C++ compiler, run on the
CPU. Tensors are flat CPU tensors, or matrices whose rows may have gaps between them; a layout says
which of their elements share an epsilon, or are a row."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
HARNESS = ROOT / "tests/cpp/simt"
STORAGES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""In the order of csrc/cpu/kernels.h."""


class Layout(NamedTuple):
    """The tensor, in the order of memory, is (outer, channels, inner); a channel has an epsilon."""

    outer: int
    channels: int
    inner: int

    @property
    def numel(self) -> int:
        return self.outer * self.channels * self.inner


class Settings(ctypes.Structure):
    _fields_ = (
        ("seed", ctypes.c_uint64),
        ("exp2_error", ctypes.c_int32),
        ("multiprocessors", ctypes.c_int32),
        ("most_blocks", ctypes.c_uint32),
    )


class Counts(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in ("loaded", "stored", "launches", "blocks", "exponentials")
    )
    loaded: int
    stored: int
    launches: int
    blocks: int
    exponentials: int


class Call(ctypes.Structure):
    _fields_ = (
        ("activation", ctypes.c_int32),
        ("storage", ctypes.c_int32),
        ("inputs", ctypes.c_void_p * 2),
        ("gaps", ctypes.c_int64 * 2),
        ("numbers", ctypes.c_void_p * 3),
        ("epsilon_is_float", ctypes.c_int32),
        ("sizes", ctypes.c_int64 * 3),
        ("intervals", ctypes.c_int64),
    )


class Table(NamedTuple):
    """In epsilon's place: the function of one input is tabulated."""

    numbers: Tensor
    intervals: int


class Placed(NamedTuple):
    """In epsilon's place: the bump has a place, of the type that the input is computed in."""

    epsilon: Tensor
    location: Tensor
    scale: Tensor


class MachineError(Exception):
    """A kernel did what it must not do."""


def build(folder: Path, source: Path = ROOT / "csrc") -> Path:
    """Compiles the kernels with the machine, and returns the library."""
    library = folder / "libsimt.so"
    command = [
        *shlex.split(os.environ.get("CXX", "c++")),
        *("-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-ffp-contract=off", "-shared", "-fPIC"),
        *(f"-I{HARNESS}", f"-I{source}", "-o", str(library)),
        *("-x", "c++", str(source / "cuda/kernels.cu")),
        *map(str, sorted(HARNESS.glob("*.cpp"))),
    ]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{process.stderr}")
    return library


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def gap(tensor: Tensor) -> int:
    """Elements between rows."""
    return 0 if tensor.is_contiguous() else tensor.stride(0) - tensor.shape[1]


class Machine:
    """A GPU with so many multiprocessors, whose exp2 is off by so many ulp at the most.

    Each call leaves what it did in ``counts``. Of a grid of more than ``most_blocks`` only that
    many blocks are run.
    """

    def __init__(
        self,
        library: Path,
        *,
        multiprocessors: int = 2,
        exp2_error: int = 1,
        seed: int = 0,
        most_blocks: int = 2**32 - 1,
    ) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.simt_forward.restype = ctypes.c_char_p
        self._library.simt_backward.restype = ctypes.c_char_p
        self._library.simt_prepare_table.restype = ctypes.c_char_p
        self._library.simt_count.restype = ctypes.c_char_p
        self.settings = Settings(seed, exp2_error, multiprocessors, most_blocks)
        self.counts = Counts()

    def forward(
        self,
        inputs: Sequence[Tensor],
        epsilon: Tensor | Table | Placed,
        layout: Layout,
        output: Tensor,
    ) -> Tensor:
        """f of one input, or f(gate) · up of two, into ``output``, which is returned."""
        self._check(
            self._library.simt_forward(
                ctypes.byref(self.settings),
                ctypes.byref(self._call(inputs, epsilon, layout)),
                ctypes.c_void_p(address(output)),
                ctypes.byref(self.counts),
            )
        )
        return output

    def prepare_table(self, table: Tensor, dtype: torch.dtype) -> Table:
        """A table, (3, knots), as the kernels take it for inputs of this dtype."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        intervals = table.shape[1] - 1
        numbers = torch.full((4 + 4 * intervals,), torch.nan, dtype=wide)
        self._check(
            self._library.simt_prepare_table(
                ctypes.byref(self.settings),
                ctypes.c_void_p(address(table)),
                table.dtype == torch.float64,
                table.shape[1],
                STORAGES.index(dtype),
                ctypes.c_void_p(address(numbers)),
                ctypes.c_int64(numbers.nbytes),
                ctypes.byref(self.counts),
            )
        )
        return Table(numbers, intervals)

    def backward(
        self,
        grad_output: Tensor,
        inputs: Sequence[Tensor],
        epsilon: Tensor | Table | Placed,
        layout: Layout,
        grad_inputs: Sequence[Tensor | None],
        grad_epsilon: Tensor | None,
    ) -> None:
        """The gradients, into the tensors that are given for them."""
        targets = (ctypes.c_void_p * 2)(*map(address, grad_inputs))
        self._check(
            self._library.simt_backward(
                ctypes.byref(self.settings),
                ctypes.byref(self._call(inputs, epsilon, layout)),
                ctypes.c_void_p(address(grad_output)),
                ctypes.c_int64(gap(grad_output)),
                targets,
                ctypes.c_void_p(address(grad_epsilon)),
                ctypes.byref(self.counts),
            )
        )

    def count(
        self, input: Tensor, place: Tensor, samples: int, layout: Layout, counts: Tensor
    ) -> Tensor:
        """Adds what is counted to ``counts``, (channels, 259), which is returned."""
        call = self._call([input], place[0], layout)
        self._check(
            self._library.simt_count(
                ctypes.byref(self.settings),
                ctypes.byref(call),
                ctypes.c_int64(samples),
                ctypes.c_void_p(address(place)),
                ctypes.c_void_p(address(counts)),
                ctypes.byref(self.counts),
            )
        )
        return counts

    def _call(
        self, inputs: Sequence[Tensor], epsilon: Tensor | Table | Placed, layout: Layout
    ) -> Call:
        assert all(tensor.numel() == layout.numel for tensor in inputs)
        intervals = 0
        if isinstance(epsilon, Table):
            activation, intervals = 2, epsilon.intervals
            numbers: Sequence[Tensor] = [epsilon.numbers]
        elif isinstance(epsilon, Placed):
            activation, numbers = 3, epsilon
        else:
            activation, numbers = len(inputs) - 1, [epsilon]
        assert activation == 2 or all(n.numel() == layout.channels for n in numbers)
        return Call(
            activation,
            STORAGES.index(inputs[0].dtype),
            (ctypes.c_void_p * 2)(*map(address, inputs)),
            (ctypes.c_int64 * 2)(*map(gap, inputs)),
            (ctypes.c_void_p * 3)(*map(address, numbers)),
            numbers[0].dtype == torch.float32,
            (ctypes.c_int64 * 3)(*layout),
            intervals,
        )

    def _check(self, problem: bytes | None) -> None:
        if problem:
            raise MachineError(problem.decode())
