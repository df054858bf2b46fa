"""One case is one call to be timed: what it computes, on which tensors, how many bytes it moves."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

import crrelu_ext

from .activations import COPY, CRRELU, Activation, activation

Call = Callable[[], object]

FORWARD = "forward"
FORWARD_OUT = "forward, out="
FORWARD_BACKWARD = "forward+backward"
MODULE = "module, no gradients"
MODULE_GRAPH = "module, graph recorded"

STREAMS = {FORWARD: 2, FORWARD_OUT: 2, FORWARD_BACKWARD: 5, MODULE: 2, MODULE_GRAPH: 2}
"""Tensors that must be read or written: forward reads input and writes output; backward reads
grad_output and input and writes grad_input. Whatever a rival moves beyond that is its own affair.
"""


@dataclass(frozen=True)
class Case:
    """One cell of a benchmark."""

    operation: str
    device: str
    dtype: str
    numel: int
    activation: str

    def __str__(self) -> str:
        size = format_numel(self.numel)
        return f"{self.operation}, {self.device}, {self.dtype}, {size}, {self.activation}"

    @property
    def bytes_moved(self) -> int:
        streams = STREAMS[FORWARD if self.activation == COPY else self.operation]
        return streams * self.numel * getattr(torch, self.dtype).itemsize

    def bind(self) -> Call:
        """The call to be timed: it takes nothing and is done when it returns."""
        operands = make_operands(self.device, self.dtype, self.numel)
        if self.activation == COPY:
            call = copy(operands)
        else:
            call = OPERATIONS[self.operation](activation(self.activation), operands)
        return call if self.device == "cpu" else partial(_synchronized, call)


@dataclass(frozen=True)
class Operands:
    """Standard normal tensors of one size; epsilon is float32, as it is beside any input."""

    input: Tensor
    grad_output: Tensor
    buffer: Tensor
    epsilon: Tensor

    def arguments(self, activation: Activation) -> tuple[Tensor, ...]:
        return (self.input, self.epsilon) if activation.takes_epsilon else (self.input,)


@lru_cache(maxsize=1)  # rivals come one after another with the same operands
def make_operands(device: str, dtype: str, numel: int) -> Operands:
    generator = torch.Generator(device).manual_seed(0)
    normal = partial(
        torch.randn, numel, generator=generator, device=device, dtype=getattr(torch, dtype)
    )
    input = normal()
    return Operands(input, normal(), torch.empty_like(input), torch.tensor([0.01], device=device))


def copy(operands: Operands) -> Call:
    """The limit: what only moves the bytes, into an existing tensor."""
    return partial(operands.buffer.copy_, operands.input)


def forward(activation: Activation, operands: Operands) -> Call:
    """A call without gradients, its output freshly allocated."""
    return partial(activation.function, *operands.arguments(activation))


def forward_out(activation: Activation, operands: Operands) -> Call:
    """A call without gradients into an existing tensor: only CRReLU has a public ``out=``."""
    assert activation is CRRELU
    return partial(crrelu_ext.crrelu, operands.input, operands.epsilon, out=operands.buffer)


def forward_backward(activation: Activation, operands: Operands) -> Call:
    """A call and the gradients of all its arguments, epsilon's included, through autograd.

    Every call records a graph of its own and drops it; nothing is accumulated.
    """
    function = activation.function
    grad_output = operands.grad_output
    leaves = tuple(
        argument.detach().requires_grad_() for argument in operands.arguments(activation)
    )

    def call() -> object:
        return torch.autograd.grad(function(*leaves), leaves, grad_output)

    return call


def module(activation: Activation, operands: Operands) -> Call:
    """A call of the nn.Module without gradients: epsilon is frozen."""
    assert activation.module is not None
    layer = activation.module().to(operands.input.device).requires_grad_(False)
    return partial(layer, operands.input)


def module_graph(activation: Activation, operands: Operands) -> Call:
    """A call of the nn.Module, as in training, for the gradients of the input and of epsilon."""
    assert activation.module is not None
    layer = activation.module().to(operands.input.device)
    return partial(layer, operands.input.detach().requires_grad_())


OPERATIONS = {
    FORWARD: forward,
    FORWARD_OUT: forward_out,
    FORWARD_BACKWARD: forward_backward,
    MODULE: module,
    MODULE_GRAPH: module_graph,
}


def format_numel(numel: int) -> str:
    """16, "64 Ki", "1 Mi"."""
    for unit, name in ((2**20, " Mi"), (2**10, " Ki")):
        if numel >= unit:
            return f"{numel // unit}{name}"
    return str(numel)


def _synchronized(call: Call) -> None:
    call()
    torch.cuda.synchronize()
