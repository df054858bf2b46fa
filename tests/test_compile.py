"""What the compilers, exporters and tracers of PyTorch make of the operators."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch._inductor.utils import run_and_get_code
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.testing._internal.optests.generate_tests import OpCheckError
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import crrelu_ext
from crrelu_ext import CRReLU, CRReLUMLP, DerivedActivation, crrelu, crrelu_, crrelu_glu

from .test_tensors import Calls

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def compiler() -> Iterator[None]:
    """Nothing compiled is left of one test to the next: the caches do not know our formula."""
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield
    torch._dynamo.reset()


class Gated(nn.Module):
    """LLaMA's feed-forward block with CRReLU in silu's place."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.epsilon = nn.Parameter(torch.full((12,), -0.2))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(crrelu_glu(self.gate(x), self.up(x), self.epsilon, channel_dim=-1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(nn.Linear(8, 12), CRReLU(init=0.3), nn.Linear(12, 8)),
    "channels": lambda: nn.Sequential(nn.Linear(8, 12), CRReLU(12, channel_dim=-1)),
    "gated": Gated,
    "mlp": lambda: CRReLUMLP(8, 12),
    "table": lambda: nn.Sequential(
        nn.Linear(8, 12), DerivedActivation(nn.functional.silu, lower=-8.0, upper=8.0)
    ),
}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)


def gradients(model: nn.Module, input: Tensor, call: Any = None) -> list[Tensor]:
    model.zero_grad()
    (model if call is None else call)(input).square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@EVERY_MODEL
def test_one_graph_for_every_batch(name: str) -> None:
    """No graph break, and no more graphs than a static and a dynamic one."""
    model, counter = MODELS[name](), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for batch in range(2, 9):
        input = torch.randn(batch, 8)
        assert_close(gradients(model, input, compiled), gradients(model, input))
    assert counter.frame_count <= 2


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in MODELS if name != "table"),
        ("plain", torch.bfloat16),
    ],
    ids=str,
)
def test_inductor(name: str, dtype: torch.dtype) -> None:
    """Of tables in test_derived.py."""
    model = MODELS[name]().to(dtype)
    input = torch.randn(6, 8, dtype=dtype)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    assert_close(compiled(input), model(input))
    assert_close(gradients(model, input, compiled), gradients(model, input))


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_writing(backend: str) -> None:
    def write(x: Tensor, out: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor]:
        return crrelu_(x + 1, epsilon) * 2, crrelu(x, epsilon, out=out)

    x, epsilon, out = torch.randn(5, 8), torch.tensor([-0.4]), torch.empty(5, 8)
    in_place = x.clone()
    first, second = torch.compile(write, fullgraph=True, backend=backend)(x, out, epsilon)
    assert_close(first, 2 * crrelu(x + 1, epsilon))
    assert_close(second, crrelu(x, epsilon))
    assert_close(out, second)
    torch.compile(crrelu_, fullgraph=True, backend=backend)(in_place, epsilon)
    assert_close(in_place, second)


def kernels(function: Callable[..., Tensor], *inputs: Tensor) -> list[int]:
    """How many kernels Inductor makes of a call and of its backward pass."""
    compiled = torch.compile(function, fullgraph=True)

    def step() -> None:
        compiled(*inputs).sum().backward()

    _, codes = run_and_get_code(step)
    return [len(re.findall(r"async_compile\.cpp_pybinding\(", code)) for code in codes]


def test_never_a_wall_to_inductor() -> None:
    """With pointwise neighbours: one kernel forward, one backward, the epsilon gradient in it."""
    x, y = (torch.randn(64, 64, requires_grad=True) for _ in range(2))
    epsilon = torch.tensor([0.3], requires_grad=True)
    assert kernels(lambda x, e: crrelu(x * 2 + 1, e) * 3, x, epsilon) == [1, 1]
    assert kernels(lambda x, y, e: crrelu_glu(x * 2, y + 1, e) * 3, x, y, epsilon) == [1, 1]


@EVERY_MODEL
@pytest.mark.parametrize("strict", [True, False])
def test_export(name: str, strict: bool) -> None:
    """To operators of ATen alone, for any batch."""
    model = MODELS[name]()
    shapes = ({0: Dim("batch", min=2)},)
    program = torch.export.export(model, (torch.randn(4, 8),), strict=strict, dynamic_shapes=shapes)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not [target for target in targets if "crrelu" in target]
    input = torch.randn(7, 8)
    assert_close(program.module()(input), model(input))


class All(nn.Module):
    """Every model, on the same input."""

    def __init__(self) -> None:
        super().__init__()
        self.models = nn.ModuleList(make() for make in MODELS.values())

    def forward(self, x: Tensor) -> list[Tensor]:
        return [model(x) for model in self.models]


def test_ahead_of_time(tmp_path: Path) -> None:
    """Without Python: AOTInductor's package."""
    model = All().eval()
    shapes = ({0: Dim("batch", min=2)},)
    program = torch.export.export(model, (torch.randn(4, 8),), dynamic_shapes=shapes)
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "model.pt2")
    )
    input = torch.randn(7, 8)
    assert_close(torch._inductor.aoti_load_package(package)(input), model(input))


@EVERY_MODEL
def test_onnx(name: str, tmp_path: Path) -> None:
    """For any batch, run by onnxruntime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, path = MODELS[name]().eval(), tmp_path / "model.onnx"
    shapes = ({0: Dim("batch", min=2)},)
    torch.onnx.export(
        model, (torch.randn(4, 8),), str(path), dynamo=True, dynamic_shapes=shapes, verbose=False
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for input in (torch.randn(7, 8), torch.tensor([[0.0, 30.0, -30.0, 1e4] * 2] * 5)):
        (output,) = session.run(None, {session.get_inputs()[0].name: input.numpy()})
        assert_close(torch.from_numpy(output), model(input).detach(), rtol=1e-5, atol=1e-5)


@EVERY_MODEL
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_autograd(name: str, backend: str) -> None:
    """The graph that eager calls have recorded, compiled."""
    model, input = MODELS[name](), torch.randn(5, 8)
    expected = gradients(model, input)
    with compiled_autograd._enable(torch.compile(backend=backend, fullgraph=True)):
        assert_close(gradients(model, input), expected)


@pytest.mark.parametrize("function", [crrelu, crrelu_glu], ids=lambda f: f.__name__)
def test_opcheck(function: Callable[..., Tensor]) -> None:
    """torch.library's own test of each operator's registration."""
    op = getattr(torch.ops.crrelu_ext, function.__name__)
    backward = getattr(torch.ops.crrelu_ext, f"{function.__name__}_backward")
    count = 1 if function is crrelu else 2
    for shape, channels, channel_dim in (((4, 3), 1, 1), ((4, 3), 3, 1), ((2, 3, 4), 4, -1)):
        inputs = [torch.randn(shape, requires_grad=True) for _ in range(count)]
        epsilon = torch.randn(channels, requires_grad=True)
        torch.library.opcheck(op.default, (*inputs, epsilon, channel_dim))
        mask = [True] * (count + 1)
        arguments = (torch.randn(shape), *inputs, epsilon, channel_dim, mask)
        torch.library.opcheck(backward.default, arguments)
    assert torch.Tag.pt2_compliant_tag in op.default.tags


def test_opcheck_of_out() -> None:
    """All but what torch allows its own operators alone: to return what they write."""
    op, arguments = torch.ops.crrelu_ext.crrelu.out, (torch.randn(4), torch.tensor([0.1]), 1)
    check = partial(torch.library.opcheck, op, arguments, {"out": torch.empty(4)})
    check(test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))
    for test in ("test_aot_dispatch_static", "test_aot_dispatch_dynamic"):
        with pytest.raises(
            OpCheckError, match=r"custom \(non-ATen\) operator whose output has alias"
        ):
            check(test_utils=test)


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_make_fx(tracing_mode: Any) -> None:
    def derivatives(x: Tensor, epsilon: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(crrelu(x, epsilon).sum(), (x, epsilon))

    leaves = (torch.randn(5, requires_grad=True), torch.tensor([0.3], requires_grad=True))
    traced = make_fx(derivatives, tracing_mode=tracing_mode)(*leaves)
    others = (torch.randn(5, requires_grad=True), torch.tensor([-0.2], requires_grad=True))
    assert_close(traced(*others), derivatives(*others))


@EVERY_MODEL
@pytest.mark.parametrize("compiled", [False, True])
def test_checkpointing(name: str, compiled: bool) -> None:
    model, input = MODELS[name](), torch.randn(5, 8)
    expected = gradients(model, input)
    call: Any = partial(checkpoint, model, use_reentrant=False)
    if compiled:
        call = torch.compile(call, backend="aot_eager", fullgraph=True)
    assert_close(gradients(model, input, call), expected)


def selective(model: nn.Module, *kept: Any) -> Callable[[Tensor], Tensor]:
    """The model, checkpointed, with the results of some operators kept."""

    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op in kept else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    return partial(checkpoint, model, use_reentrant=False, context_fn=contexts)


@pytest.mark.parametrize(
    ("name", "operator"), [("plain", "crrelu"), ("gated", "crrelu_glu"), ("table", "tabulated")]
)
def test_selective_checkpointing(name: str, operator: str) -> None:
    """By the operator's name: what is kept is not computed again, the linear layers are."""
    model, input = MODELS[name](), torch.randn(5, 8)
    expected = gradients(model, input)
    layers = sum(isinstance(layer, nn.Linear) for layer in model.modules())
    op = getattr(torch.ops.crrelu_ext, operator).default
    for kept, times in (([], 2), ([op], 1)):
        with Calls() as calls:
            assert_close(gradients(model, input, selective(model, *kept)), expected)
        assert calls.names.count(f"{operator}.default") == times
        assert calls.names.count("addmm.default") > layers


@pytest.mark.parametrize("name", ["plain", "gated"])
def test_selective_checkpointing_compiled(name: str) -> None:
    """There the operators are the formula's: our names keep nothing, those of ATen do."""
    model, input, graphs = MODELS[name](), torch.randn(5, 8), []

    def compiler(graph: torch.fx.GraphModule, inputs: Any) -> torch.fx.GraphModule:
        graphs.append({node.target for node in graph.graph.nodes})
        return graph

    ours, exp = torch.ops.crrelu_ext, torch.ops.aten.exp.default
    for kept, again in (([ours.crrelu.default, ours.crrelu_glu.default], True), ([exp], False)):
        torch._dynamo.reset()
        graphs.clear()
        call = torch.compile(
            selective(model, *kept),
            backend=aot_autograd(fw_compiler=compiler, bw_compiler=compiler),
            fullgraph=True,
        )
        assert_close(gradients(model, input, call), gradients(model, input))
        assert [exp in graph for graph in graphs] == [True, again]


@EVERY_MODEL
def test_deterministic_algorithms(name: str) -> None:
    """They are deterministic anyway, so nothing is refused and nothing changes."""
    model, input = MODELS[name](), torch.randn(5, 8)
    expected = gradients(model, input)
    torch.use_deterministic_algorithms(True)
    try:
        actual = gradients(model, input)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_errors_reach_the_user() -> None:
    compiled = torch.compile(crrelu, backend="eager")
    with pytest.raises(Exception, match="epsilon has 2 values"):
        compiled(torch.randn(3, 4), torch.zeros(2))
    assert crrelu_ext.build_info()["native"]
