"""``python -m crrelu_ext``: what is installed, whether it computes right, and what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

import crrelu_ext
from crrelu_ext import reference

TOLERANCE = 1e-5


def output_and_gradients(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *arguments: torch.Tensor,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, ...]:
    """The function's output at (input, epsilon), and the gradients of the output's sum for both."""
    input, epsilon = (argument.to(dtype, copy=True).requires_grad_() for argument in arguments)
    output = function(input, epsilon)
    return output.detach(), *torch.autograd.grad(output.sum(), (input, epsilon))


def self_check() -> float:
    """Largest error of `crrelu` and its two gradients in float32, against the formula in float64.

    Relative to the largest entry of each, for an epsilon of one value and one per channel.
    """
    errors = []
    for channels in (1, 3):
        input = torch.linspace(-1, 4, 303, dtype=torch.float64).reshape(101, 3)
        epsilon = torch.linspace(-0.5, 1, channels, dtype=torch.float64)
        exact = output_and_gradients(reference.crrelu, input, epsilon, dtype=torch.float64)
        actual = output_and_gradients(crrelu_ext.crrelu, input, epsilon, dtype=torch.float32)
        for a, e in zip(actual, exact, strict=True):
            errors.append(((a - e).abs().max() / e.abs().max()).item())
    return max(errors)


def main() -> int:
    """Prints the report; returns 1 if something is wrong, else 0."""
    info = crrelu_ext.build_info()
    error = self_check()
    correct = error <= TOLERANCE  # false for NaN too
    rows = {
        "crrelu_ext": info["version"],
        "python": info["python"],
        "torch": info["torch"],
        "native": "no, the composed formula is used",
    }
    if info["native"]:
        rows |= {
            "native": f"yes, built against torch {info['torch_built_against']}",
            "ISA": f"{info['isa']} (available: {', '.join(info['isa_available'])})",
            "CUDA": "not built",
            "compiler": info["compiler"],
        }
    if info["cuda"]:
        rows["CUDA"] = f"{info['cuda']}, architectures {' '.join(info['cuda_arch_list'])}"
    rows |= {
        "threads": info["threads"],
        "self-check": f"{'passed' if correct else 'FAILED'}, largest relative error {error:.1e}",
    }
    for name, value in rows.items():
        print(f"{name:<12}{value}")
    if info["problem"]:
        print(f"\nProblem: {info['problem']}")
    return 0 if correct and not info["problem"] else 1


if __name__ == "__main__":
    sys.exit(main())
