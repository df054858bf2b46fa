"""What the choices made in csrc/cuda cost or gain on the GPU that is here: ``make gpu-choices``.

Compiles the kernels once for each other choice, of a constant or an instruction, and times them
beside the shipped ones, and the backward pass in one launch beside that in two. Prints a table,
and writes it to a file where one is named. Needs nvcc and torch, and no build of crrelu_ext.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, product
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from device import Call, Device, Race
from torch import Tensor

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
SHIPPED, ONE_LAUNCH = "as shipped", "one launch"
LAUNCH = "template <class... Parameters, class... Arguments>\nvoid launch("
LAUNCH_EARLY = """
template <class... Parameters, class... Arguments>
void launch_early(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream,
                  const Arguments&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  const cudaLaunchConfig_t config{grid, block, 0, stream, &attribute, 1};
  cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}
"""
"""Before the kernel in front has ended; from sm_90 on."""
CHOICES: dict[str, tuple[tuple[str, str], ...]] = {
    SHIPPED: (),
    "2 loads, 4 blocks": (("kLoads = 4;", "kLoads = 2;"),),
    "2 loads, 5 blocks": (("kLoads = 4;", "kLoads = 2;"), ("kResident = 4;", "kResident = 5;")),
    "4 loads, 3 blocks": (("kResident = 4;", "kResident = 3;"),),
    "8 loads, 2 blocks": (("kLoads = 4;", "kLoads = 8;"), ("kResident = 4;", "kResident = 2;")),
    "512 threads, 2 blocks": (
        ("kThreads = 256;", "kThreads = 512;"),
        ("kResident = 4;", "kResident = 2;"),
    ),
    "1 wave": (("kWaves = 4;", "kWaves = 1;"),),
    "2 waves": (("kWaves = 4;", "kWaves = 2;"),),
    "8 waves": (("kWaves = 4;", "kWaves = 8;"),),
    "stores evicted first": (("st.global.v4.u32", "st.global.cs.v4.u32"),),
    "second launch early": (
        (LAUNCH, LAUNCH_EARLY + LAUNCH),
        ("launch(fold<S>,", "launch_early(fold<S>,"),
        (
            "  total = block_sum(total);\n  if (threadIdx.x == 0) sums.",
            '  asm volatile("griddepcontrol.launch_dependents;");\n'
            "  total = block_sum(total);\n  if (threadIdx.x == 0) sums.",
        ),
        (
            "  const int64_t channel = blockIdx.x;\n",
            "  const int64_t channel = blockIdx.x;\n"
            '  asm volatile("griddepcontrol.wait;" ::: "memory");\n',
        ),
    ),
}
"""What is replaced by what; each stands in the sources once."""
DTYPES = (torch.float32, torch.bfloat16)
SIZES = (2**14, 2**18, 2**22, 2**26, 2**28)


def changed_sources(choice: str, folder: Path) -> Path:
    """A copy of csrc in which the choice is made."""
    copy = shutil.copytree(CSRC, folder / "csrc")
    for old, new in CHOICES[choice]:
        files = [path for path in copy.glob("cuda/*.cuh") if old in path.read_text()]
        if len(files) != 1 or files[0].read_text().count(old) != 1:
            raise ValueError(f"{choice}: {old!r} must stand in csrc/cuda once")
        files[0].write_text(files[0].read_text().replace(old, new))
    return copy


def build(choice: str, folder: Path, architecture: str) -> Path:
    """The library of choices.cu, for a GPU of the architecture ("90")."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if not nvcc:
        raise FileNotFoundError("there is no nvcc, neither on PATH nor in /usr/local/cuda/bin")
    folder = folder / re.sub(r"\W", "-", choice)
    library = folder / "choices.so"
    flags = [
        "-O3",
        "-fmad=false",
        "-std=c++17",
        f"-arch=sm_{architecture}",
        "-shared",
        "-Xcompiler",
        "-fPIC",
    ]
    include = f"-I{changed_sources(choice, folder)}"
    command = [nvcc, *flags, include, "-o", str(library), str(HERE / "choices.cu")]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{choice}: nvcc failed\n{process.stderr}")
    return library


class Operands(NamedTuple):
    grad_output: Tensor
    input: Tensor
    epsilon: Tensor
    grad_input: Tensor
    grad_epsilon: Tensor


def operands(dtype: torch.dtype, numel: int) -> Operands:
    normal = partial(torch.randn, numel, device="cuda", dtype=dtype)
    epsilon = torch.full((1,), 0.01, device="cuda")
    x = normal()
    return Operands(normal(), x, epsilon, torch.empty_like(x), torch.empty_like(epsilon))


class Kernels:
    """The functions of a library, on the current stream."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.choices_slots.restype = ctypes.c_int64
        self._multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count

    def forward(self, o: Operands) -> None:
        self._call("forward", o.input, o.input, o.epsilon, o.grad_input)

    def backward(self, o: Operands, done: Tensor | None = None) -> Tensor | None:
        """Returns the slots, which a graph must keep; one block needs none, and no counter."""
        is_float, numel = o.input.dtype == torch.float32, ctypes.c_int64(o.input.numel())
        count = self._library.choices_slots(is_float, numel, self._multiprocessors)
        slots = torch.empty(count, dtype=torch.float64, device="cuda") if count else None
        self._call("backward", o.input, *o, slots, done if count else None)
        return slots

    def _call(self, name: str, like: Tensor, *tensors: Tensor | None) -> None:
        error = getattr(self._library, f"choices_{name}")(
            like.dtype == torch.float32,
            ctypes.c_int64(like.numel()),
            self._multiprocessors,
            ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
            *(
                ctypes.c_void_p(tensor.data_ptr() if tensor is not None else 0)
                for tensor in tensors
            ),
        )
        if error:
            raise RuntimeError(f"{name}: CUDA's error {error}")


def measure(libraries: dict[str, Path]) -> Iterator[list[str]]:
    """Rows of a table: what is timed, microseconds as shipped, each choice's time over that.

    The forward pass has no waves: what those choices show there is noise.
    """
    device = Device(dry_run=False)
    kernels = {choice: Kernels(library) for choice, library in libraries.items()}
    for dtype, numel in product(DTYPES, SIZES):
        nbytes = numel * dtype.itemsize
        count = max(1, min(64, device.cold_bytes // (3 * nbytes) + 1))
        sets = [operands(dtype, numel) for _ in range(count)]
        counters = [torch.zeros(1, dtype=torch.int32, device="cuda") for _ in sets]
        calls: dict[tuple[str, str], list[Call]] = {}
        for choice, kernel in kernels.items():
            calls["forward", choice] = [partial(kernel.forward, o) for o in sets]
            calls["backward", choice] = [partial(kernel.backward, o) for o in sets]
        calls["backward", ONE_LAUNCH] = [
            partial(kernels[SHIPPED].backward, o, done)
            for o, done in zip(sets, counters, strict=True)
        ]
        compare(kernels, sets[0], counters[0])
        race: Race[tuple[str, str]] = Race(device, 2 * nbytes)
        for what, same in calls.items():
            race.add(what, same)
        times = {what: median(seconds) for what, seconds in race.run(rounds=30).items()}
        for operation in ("forward", "backward"):
            shipped = times[operation, SHIPPED]
            cells = [
                operation,
                str(dtype).removeprefix("torch."),
                str(numel),
                f"{1e6 * shipped:.2f}",
            ]
            for choice in (*libraries, ONE_LAUNCH):
                if choice != SHIPPED:
                    time = times.get((operation, choice))
                    cells.append(f"{time / shipped:.3f}" if time else "")
            yield cells


def compare(kernels: dict[str, Kernels], o: Operands, done: Tensor) -> None:
    """Raises an error unless all choices give the same results; of sums, within rounding."""
    outputs, sums = [], []
    for kernel in kernels.values():
        o.grad_input.zero_()
        kernel.forward(o)
        outputs.append(o.grad_input.clone())
    for kernel, counter in [(kernel, None) for kernel in kernels.values()] + [
        (kernels[SHIPPED], done),
        (kernels[SHIPPED], done),
    ]:
        o.grad_epsilon.fill_(torch.nan)
        kernel.backward(o, counter)
        sums.append(o.grad_epsilon.item())
    if not all(torch.equal(output, outputs[0]) for output in outputs):
        raise RuntimeError("the choices disagree on the output")
    # Float sums within a thread: in another order by another choice, in the same by one launch.
    shipped, one_launch = sums[0], sums[-2:]
    scale = o.input.numel() ** 0.5
    if not all(abs(s - shipped) <= 1e-3 * scale for s in sums):
        raise RuntimeError(f"the choices disagree on epsilon's gradient: {sums}")
    if not all(abs(s - shipped) <= 1e-6 * scale for s in one_launch) or done.item():
        raise RuntimeError(f"one launch gives {one_launch}, two {shipped}; counter {done.item()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", help="also write the table here")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(f"There is no GPU that torch {torch.__version__} can use.")
    architecture = "".join(map(str, torch.cuda.get_device_capability()))
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor() as pool:
        compile_choice = partial(build, folder=Path(scratch), architecture=architecture)
        libraries = dict(zip(CHOICES, pool.map(compile_choice, CHOICES), strict=True))
        others = [*(choice for choice in CHOICES if choice != SHIPPED), ONE_LAUNCH]
        header = ["", "dtype", "elements", "µs as shipped", *others]
        name = torch.cuda.get_device_name()
        text = f"{name}, torch {torch.__version__}: time over that as shipped.\n\n"
        for row in chain((header, ["---"] * len(header)), measure(libraries)):
            text += "| " + " | ".join(row) + " |\n"
            print(row, flush=True)
            if arguments.file:
                arguments.file.write_text(text)


if __name__ == "__main__":
    main()
