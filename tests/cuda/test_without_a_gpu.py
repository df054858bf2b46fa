"""CUDA tensors as the operators see them, on a machine without a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._pytree import tree_map_only

import crrelu_ext

from ..evaluation import evaluate

KERNELS = (
    torch._C.DispatchKey.CUDA
    if crrelu_ext.build_info()["cuda"]
    else torch._C.DispatchKey.CompositeExplicitAutograd
)
"""Where the dispatcher finds what runs for a CUDA tensor."""


class Claimed(Tensor):
    """Says that it lies on a GPU; its numbers lie on the CPU, where all operators run but ours."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Claimed:
        tensor: Claimed = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            dtype=held.dtype,
            device=torch.device("cuda:0"),
        )
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "crrelu_ext":
            return func._op_dk(KERNELS, *args, **kwargs)
        args, kwargs = tree_map_only(Claimed, lambda tensor: tensor.held, (args, kwargs))
        return tree_map_only(Tensor, Claimed, func(*args, **kwargs))


@pytest.mark.skipif(bool(crrelu_ext.build_info()["cuda"]), reason="the CUDA kernels are here")
def test_without_kernels_there_is_one_warning(capfd: pytest.CaptureFixture[str]) -> None:
    x, grad, epsilon = torch.randn(5), torch.randn(5), torch.tensor([-0.7])
    backward = torch.ops.crrelu_ext.crrelu_backward
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        output = crrelu_ext.crrelu(Claimed(x), Claimed(epsilon))
        grads = backward(Claimed(grad), Claimed(x), Claimed(epsilon), 1, [True, True])
    (warning,) = caught
    assert "without CUDA kernels" not in capfd.readouterr().err  # where Python is not asked
    assert "FORCE_CUDA=1 pip install" in str(warning.message)
    for actual, expected in zip((output, *grads), evaluate(x, epsilon, grad), strict=True):
        assert isinstance(actual, Claimed)
        assert_close(actual.held, expected)


def test_epsilon_on_the_cpu_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="epsilon is on cpu but input is on cuda:0"):
        crrelu_ext.crrelu(Claimed(torch.randn(5)), torch.tensor([0.5]))


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=str)
def autocast_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Autocast of CUDA tensors, which torch.autocast itself refuses to begin without a GPU."""
    was = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", request.param)
    yield request.param
    torch.set_autocast_dtype("cuda", was)
    torch.set_autocast_enabled("cuda", False)
    torch.clear_autocast_cache()


def test_autocast(autocast_dtype: torch.dtype) -> None:
    """As F.gelu: whatever comes in goes out; the input's type is not changed."""
    with FakeTensorMode():
        x, weight, epsilon, epsilons, place, table = (
            torch.empty(shape, device="cuda")
            for shape in ((4, 8), (8, 8), (1,), (8,), (2, 1), (3, 9))
        )
        hidden = F.linear(x, weight)
        assert hidden.dtype == autocast_dtype
        for function in (
            F.gelu,
            lambda x: crrelu_ext.crrelu(x, epsilon),
            lambda x: crrelu_ext.crrelu(x, epsilons),
            lambda x: crrelu_ext.crrelu_glu(x, x, epsilon),
            lambda x: crrelu_ext.crrelu_at(x, epsilon, place),
            lambda x: crrelu_ext.functional.tabulated(x, table),
            lambda x: torch.ops.crrelu_ext.crrelu_backward(x, x, epsilon, 1, [True, True])[0],
        ):
            assert function(hidden).dtype == autocast_dtype
            assert function(x).dtype == torch.float32
