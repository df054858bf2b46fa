"""Derives CRReLU from ReLU, and what takes its place where the input's density is another.

    python examples/derive_crrelu.py [FOLDER]

On x > 0 ReLU is f(x) = x, and the correction of its inverse is eta(z) = -p'(z). Divided by its
slope at 0, which a learnable epsilon absorbs, it is the bump b of

    max(0, x) + epsilon · b(x),

for a normal density b(x) = x exp(-x²/2), which makes it CRReLU. With a FOLDER the bumps are drawn.
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from crrelu_ext import eafo
from crrelu_ext.eafo.activations import identity
from crrelu_ext.eafo.names import parse_density
from crrelu_ext.elementwise import Function

DENSITIES = {
    "normal": "normal(0,1)",
    "logistic": "logistic(0,1)",
    "Student-t": "studentt(3)",
    "two normals": "0.5*normal(-0.7,1)+0.5*normal(0.7,1)",
    "two normals apart": "0.5*normal(-2,1)+0.5*normal(2,1)",
}
EPSILON = 0.1


def derive_bump(density: str) -> Function:
    """b, from the engine: eta of the identity, divided by its slope at 0."""
    eta = eafo.inverse_correction(identity, parse_density(density))
    step = torch.tensor(1e-4, dtype=torch.float64)
    slope = eta(step) / step
    return lambda x: eta(x) / slope


def inverse_error(bump: Function, x: torch.Tensor) -> float:
    """The largest |g(f(x)) - x|, with g(z) = z - ε b(z) and f(x) = x + ε b(x) for its inverse."""
    z = x + EPSILON * bump(x)
    return (z - EPSILON * bump(z) - x).abs().max().item()


def main() -> None:
    """Prints the bumps and, with a folder as the argument, draws them."""
    points = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    table = Table("density", *(f"b({x:g})" for x in points), f"error at ε = {EPSILON}")
    exact = points * torch.exp(-points * points / 2)
    table.add_row("x exp(-x²/2)", *(f"{value:.6f}" for value in exact), "")
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    x = torch.linspace(0, 5, 501, dtype=torch.float64)
    for name, density in DENSITIES.items():
        bump = derive_bump(density)
        values = (f"{value:.6f}" for value in bump(points))
        table.add_row(name, *values, f"{inverse_error(bump, x):.1e}")
        axes.plot(x, bump(x), label=name)
    Console().print(table)
    if len(sys.argv) > 1:
        axes.set(xlabel="x", ylabel="b(x)", title="What is added to ReLU, by density of the input")
        axes.grid(alpha=0.3)
        axes.legend()
        folder = Path(sys.argv[1])
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "bumps.png", dpi=120)


if __name__ == "__main__":
    main()
