"""What Inductor makes of the formula for a GPU, without one: the graphs that it would compile are
lowered to Triton's source for tensors that are on a GPU in name only."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._inductor import scheduler
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from crrelu_ext import crrelu, crrelu_at, crrelu_glu

pytest.importorskip("triton")

H200 = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    warp_size=32,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What Inductor asks of a GPU before it writes code for one."""
    interface = "torch._dynamo.device_interface.CudaInterface"
    monkeypatch.setattr(f"{interface}.get_device_properties", lambda _=None: H200)
    monkeypatch.setattr(f"{interface}.get_compute_capability", lambda _=None: 90)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _=None: H200)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(scheduler, "has_triton", lambda _=None: True)
    monkeypatch.setattr("torch.utils._triton.triton_hash_with_backend", lambda: "none")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def graphs(
    function: Callable[..., Tensor], *inputs: Tensor
) -> list[tuple[GraphModule, list[tuple[torch.Size, tuple[int, ...], torch.dtype]]]]:
    """Of a call and of its backward pass, as Inductor gets them, and the operands of each.

    The inputs are meta tensors, which autograd takes without a GPU.
    """
    found = []

    def keep(graph: GraphModule, operands: list[Tensor]) -> Callable[..., object]:
        found.append((graph, [(t.shape, t.stride(), t.dtype) for t in operands]))
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=keep,
        bw_compiler=keep,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    torch.compile(function, backend=backend, fullgraph=True)(*inputs).sum().backward()
    return found


def kernels(function: Callable[..., Tensor], *inputs: Tensor) -> list[list[str]]:
    """Triton's source of the kernels of each of these graphs; nothing but kernels is called."""
    found = []
    for graph, shapes in graphs(function, *inputs):
        for node in graph.graph.nodes:
            if "device" in node.kwargs:
                node.update_kwarg("device", torch.device("cuda"))
        graph.recompile()
        with FakeTensorMode() as mode:
            operands = [
                torch.empty_strided(size, stride, dtype=dtype, device="cuda")
                for size, stride, dtype in shapes
            ]
            lowering = GraphLowering(make_fx(graph)(*operands), example_inputs=operands)
            with (
                V.set_debug_handler(DebugContext()),
                V.set_graph_handler(lowering),
                V.set_fake_mode(mode),
            ):
                lowering.run(*operands)
                code = lowering.codegen()[0].value
        assert not re.findall(r"^[^#\n]*(?:extern_kernels|torch\.ops)\.\S+\(", code, re.MULTILINE)
        found.append(re.findall(r"async_compile\.triton\('\w+', '''(.*?)'''", code, re.DOTALL))
    return found


def elements(kernel: str) -> int:
    """How many a kernel goes over."""
    sizes = re.findall(r"^    [xr]\w*numel = (\d+)$", kernel, re.MULTILINE)
    return math.prod(map(int, sizes))


CALLS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "plain": (1, lambda x, e, _: crrelu(x * 2 + 1, e, channel_dim=-1) * 3),
    "gated": (2, lambda x, y, e, _: crrelu_glu(x * 2, y + 1, e, channel_dim=-1) * 3),
    "placed": (1, lambda x, e, place: crrelu_at(x * 2 + 1, e, place, channel_dim=-1) * 3),
}
"""How many inputs there are, and what is done with them, epsilon and a place."""


@pytest.mark.parametrize(
    ("name", "shape", "channels", "dtype"),
    [
        ("plain", (256, 197, 768), 1, torch.float32),
        ("plain", (256, 197, 768), 1, torch.bfloat16),
        ("plain", (256, 197, 768), 768, torch.bfloat16),
        ("plain", (8, 1024, 3072), 1, torch.bfloat16),
        ("plain", (2048, 3072), 1, torch.bfloat16),
        ("plain", (64, 7, 7, 384), 1, torch.bfloat16),
        ("plain", (2**22,), 1, torch.bfloat16),
        ("gated", (256, 197, 768), 1, torch.bfloat16),
        ("gated", (8, 1024, 3072), 3072, torch.bfloat16),
        ("placed", (256, 197, 768), 1, torch.bfloat16),
        ("placed", (8, 1024, 3072), 3072, torch.bfloat16),
    ],
    ids=str,
)
def test_one_pass_each_way(
    name: str, shape: tuple[int, ...], channels: int, dtype: torch.dtype
) -> None:
    """What is of the input's size is read and written by one kernel, with its neighbours."""
    inputs, call = CALLS[name]
    empty = partial(torch.empty, device="meta")
    tensors = [empty(shape, dtype=dtype, requires_grad=True) for _ in range(inputs)]
    epsilon, place = empty(channels, requires_grad=True), empty(2, channels)
    forward, backward = kernels(call, *tensors, epsilon, place)
    assert len(forward) == 1
    assert [elements(kernel) >= math.prod(shape) for kernel in backward].count(True) == 1
    assert len(backward) <= 3  # the others add up what that one leaves
