"""CRReLU inside a model's feed-forward block: ``python -m benchmarks.blocks``.

The block is GPT-2 small's (768 → 3072 → 768). Under torch.compile CRReLU shows Inductor its
formula; "native" is the operator in the formula's place, which nothing can be fused with. The two
sides of a pair take turns, forward and backward, and each round gives one ratio of times; the
median over the rounds counts, and their quartiles show the spread. Both have the same weights, in
the same memory: where that lies can make two percent.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import quantiles
from time import perf_counter

import rich.box
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from crrelu_ext import CRReLU, CRReLUMLP

from .environment import describe, need_native

WIDTH, HIDDEN, TOKENS = 768, 3072, 256
ROUNDS = 20
# With tanh it is what GPT-2 has; ATen computes it several times slower than with erf on a CPU.
GELUS: dict[str, Callable[[], nn.Module]] = {"tanh": partial(nn.GELU, "tanh"), "erf": nn.GELU}


@dataclass(frozen=True)
class Pair:
    """Two blocks whose times are compared: ours over theirs."""

    name: str
    ours: Callable[[], nn.Module]
    theirs: Callable[[], nn.Module]
    dtype: torch.dtype
    compiled: bool = False


def block(activation: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(WIDTH, HIDDEN), activation(), nn.Linear(HIDDEN, WIDTH))


class Native(CRReLU):
    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.crrelu_ext.crrelu(input, self.epsilon, self.channel_dim)


class Chain(nn.Module):
    """x · 2 + 1, the activation, · 3: all of which is one kernel if it is fused."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        return self.activation(input * 2 + 1) * 3


def pairs() -> list[Pair]:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for (form, gelu), compiled in product(GELUS.items(), (False, True)):
            name = f"CRReLU / GELU ({form})"
            found.append(Pair(name, block(CRReLU), block(gelu), dtype, compiled))
        mlp = Pair("CRReLUMLP / CRReLU", lambda: CRReLUMLP(WIDTH, HIDDEN), block(CRReLU), dtype)
        found.append(mlp)
        native = "native / formula"
        found.append(Pair(f"{native}, block", block(Native), block(CRReLU), dtype, True))
        found.append(Pair(f"{native}, alone", Native, CRReLU, dtype, True))
        chains = (lambda: Chain(Native())), (lambda: Chain(CRReLU()))
        found.append(Pair(f"{native}, x·2+1 → f → ·3", *chains, dtype, True))
    return found


def linears(model: nn.Module) -> list[nn.Linear]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


def steps(pair: Pair) -> list[Callable[[], None]]:
    """Of both sides a training step's forward and backward pass, without the optimizer."""
    torch.manual_seed(0)
    ours, theirs = pair.ours(), pair.theirs()
    for layer, other in zip(linears(ours), linears(theirs), strict=True):
        layer.to(pair.dtype)
        other.weight, other.bias = layer.weight, layer.bias
    width = WIDTH if linears(ours) else HIDDEN
    input = torch.randn(TOKENS, width, dtype=pair.dtype, requires_grad=True)
    grad_output = torch.randn_like(input)

    def step(model: nn.Module) -> Callable[[], None]:
        call: Callable[[Tensor], Tensor] = torch.compile(model) if pair.compiled else model
        return lambda: call(input).backward(grad_output)

    return [step(ours), step(theirs)]


def ratios(sides: list[Callable[[], None]]) -> list[float]:
    """Of each round, the time of the first side over that of the second."""
    for run in sides * 3:  # compile, warm up
        run()
    found = []
    for index in range(ROUNDS):
        times = {}
        for side in (0, 1) if index % 2 else (1, 0):
            start = perf_counter()
            sides[side]()
            times[side] = perf_counter() - start
        found.append(times[0] / times[1])
    return found


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.blocks", description=__doc__).parse_args()
    need_native()
    console = Console()
    table = Table(box=rich.box.SIMPLE_HEAD, caption="time of the first over that of the second")
    for column in ("", "dtype", "mode", "median", "quartiles"):
        table.add_column(column)
    all_pairs, stopped = pairs(), False
    try:
        for pair in track(all_pairs, "blocks", console=console, transient=True, auto_refresh=False):
            low, middle, high = quantiles(ratios(steps(pair)), n=4)
            table.add_row(
                pair.name,
                str(pair.dtype).removeprefix("torch."),
                "compiled" if pair.compiled else "eager",
                f"{middle:.3f}",
                f"{low:.3f}-{high:.3f}",
            )
    except KeyboardInterrupt:
        stopped = True
    console.print(table)
    for name, value in describe("python -m benchmarks.blocks").items():
        console.print(f"{name}: {value}", highlight=False)
    if stopped:
        raise SystemExit(f"Stopped after {table.row_count} of {len(all_pairs)} pairs.")


if __name__ == "__main__":
    main()
