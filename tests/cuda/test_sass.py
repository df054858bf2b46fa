"""The machine code of the CUDA kernels as built, held to a budget. Needs a disassembler, no GPU."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest

import crrelu_ext
from crrelu_ext._ops import _C

ARCHITECTURES = ("80", "90", "100")


class Budget(NamedTuple):
    """Of one kernel: what launch bounds promise, and what an element may cost."""

    registers: int
    loads: int
    """Of 16 bytes, issued in the main loop before anything waits for one of them."""
    exp2: int
    """MUFU.EX2 for each element, on either of the formula's two paths."""


# Runs, also those with gaps between rows: 3 blocks of 256 threads to a multiprocessor, 4 of CRReLU
# itself; rows, and tables: 2.
RUNS, RUNS_OF_PLAIN, ROWS = 80, 64, 128
BUDGETS = {
    (f"{direction}_{kind}", stored): Budget(registers, 4, exp2)
    for direction in ("forward", "backward")
    for kind, registers in {"runs": RUNS, "gaps": RUNS, "rows": ROWS}.items()
    for stored, exp2 in {"float": 0, "double": 0, "BFloat16": 1, "Half": 1}.items()
}
LANES = {"float": 4, "double": 2, "BFloat16": 8, "Half": 8}
ACTIVATIONS = {"CRReLU": 1, "CRReLUGated": 2, "CRReLUPlaced": 1}
"""And their inputs."""
OTHERS = ("fold", "prepare_table", "count_samples")


class Kernel(NamedTuple):
    instructions: list[str]
    registers: int
    stack: int

    def count(self, pattern: str) -> int:
        return sum(re.search(pattern, text) is not None for text in self.instructions)

    def loads_in_flight(self) -> int:
        """The most loads of 16 bytes that are issued before an instruction uses what one brings."""
        longest, waiting = 0, set[int]()
        for text in self.instructions:
            used = {int(number) for number in re.findall(r"\bR(\d+)", text)}
            load = re.search(r"\bLDG\.E\.128\S* R(\d+)", text)
            if used & waiting or re.match(r"(BRA|EXIT)\b", text):
                waiting = set()
            if load:
                waiting |= set(range(int(load[1]), int(load[1]) + 4))
            longest = max(longest, len(waiting) // 4)
        return longest


def find_tool(name: str) -> str | None:
    """On PATH, or where pip's packages of the CUDA toolkit put it."""
    wheels = Path(sysconfig.get_path("purelib"), "nvidia").glob(f"*/bin/{name}")
    return shutil.which(name) or next(map(str, wheels), None)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def kernels(request: pytest.FixtureRequest) -> dict[str, Kernel]:
    """Of the library as it was built, by name, with its template arguments."""
    built = [name.removesuffix("+PTX") for name in crrelu_ext.build_info()["cuda_arch_list"]]
    cuobjdump = find_tool("cuobjdump")
    if f"{request.param[:-1]}.{request.param[-1]}" not in built:
        pytest.skip(f"the kernels were not built for sm_{request.param}")
    if cuobjdump is None:
        pytest.skip("cuobjdump (pip install nvidia-cuda-cuobjdump) is not here")
    return disassemble(cuobjdump, request.param)


def disassemble(cuobjdump: str, architecture: str) -> dict[str, Kernel]:
    assert _C is not None
    command = [cuobjdump, "-arch", f"sm_{architecture}", str(_C.__file__)]
    run = functools.partial(subprocess.check_output, text=True, stderr=subprocess.STDOUT)
    resources = dict(re.findall(r"Function (\S+?):\s+(.*)", run([*command, "-res-usage"])))
    found = {}
    for part in re.split(r"\n\s*Function : ", run([*command, "-sass"]))[1:]:
        symbol = part.split("\n", 1)[0].strip()
        used = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", resources[symbol])}
        instructions = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(.*?);", part)
        found[readable(symbol)] = Kernel(instructions, used["REG"], used["STACK"])
    return found


def readable(symbol: str) -> str:
    """ "forward_runs CRReLU float" of the mangled name; with gaps, "forward_gaps CRReLU float"."""
    found = re.search(
        r"\d((?:forward|backward)_(?:runs|rows)|fold|prepare_table|count_samples)I"
        r"(?:NS\w*?\d(CRReLU|CRReLUGated|CRReLUPlaced|Tabulated)E)?"
        r"(?:NS_\d(BFloat16|Half)E|([fd]+))(Lb1E)?",
        symbol,
    )
    assert found is not None, symbol
    name, activation, stored, plain, gaps = found.groups()
    types = [stored] if stored else [{"f": "float", "d": "double"}[letter] for letter in plain]
    return " ".join(
        filter(None, [name.replace("runs", "gaps") if gaps else name, activation, *types])
    )


def test_each_kernel_has_a_budget(kernels: dict[str, Kernel]) -> None:
    budgets = {f"{n} {activation} {stored}" for n, stored in BUDGETS for activation in ACTIVATIONS}
    others = {name for name in kernels if name.split()[0] in OTHERS}
    tabulated = {name for name in kernels if " Tabulated " in name}
    assert set(kernels) == budgets | others | tabulated
    # A table's loads are by element: of it no more is promised than what launch bounds promise.
    assert all(kernels[name].registers <= ROWS for name in tabulated)


def test_nothing_goes_to_local_memory(kernels: dict[str, Kernel]) -> None:
    for name, kernel in kernels.items():
        assert kernel.stack == 0, name
        assert kernel.count(r"\b(LDL|STL)\b") == 0, name


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("name", "stored"), BUDGETS)
def test_budget(kernels: dict[str, Kernel], name: str, stored: str, activation: str) -> None:
    budget, kernel = BUDGETS[name, stored], kernels[f"{name} {activation} {stored}"]
    streams = ACTIVATIONS[activation] + name.startswith("backward")
    packs = max(1, budget.loads // streams)
    written = ACTIVATIONS[activation] if name.startswith("backward") else 1
    plain_runs = activation == "CRReLU" and budget.registers == RUNS
    assert kernel.registers <= (RUNS_OF_PLAIN if plain_runs else budget.registers)
    assert kernel.loads_in_flight() >= packs * streams

    # Each pack of the main loop and the one of the ragged loop; the formula has two paths.
    bodies = packs + 1
    assert kernel.count(r"\bSTG\.E\.128") == bodies * written
    assert kernel.count(r"\bMUFU\.EX2") == 2 * bodies * LANES[stored] * budget.exp2
