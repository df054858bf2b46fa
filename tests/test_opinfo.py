"""PyTorch's own description of an operator, OpInfo, and PyTorch's own checkers run over it.

The wheel brings the OpInfo machinery and the checkers of torch.testing._internal, but not the
classes in PyTorch's repository that loop over them: the loops are here, one test each. Left out of
what those do: the tests of TorchScript and of op variants (method, in-place), which we have none
of; in place and ``out=`` are in test_arguments.py and test_strides.py.
"""

# mypy: disable-error-code="untyped-decorator, attr-defined"

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import jacfwd, jacrev, jvp, vjp, vmap
from torch.testing import assert_close
from torch.testing._internal.common_device_type import instantiate_device_type_tests, ops
from torch.testing._internal.common_dtype import floating_types_and
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_utils import TestCase, gradcheck, gradgradcheck
from torch.testing._internal.composite_compliance import (
    check_backward_formula,
    check_forward_ad_formula,
    check_with_mode,
)
from torch.testing._internal.opinfo.core import OpInfo, SampleInput
from torch.testing._internal.optests import aot_autograd_check, fake_check, make_fx_check

import crrelu_ext

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

DTYPES = floating_types_and(torch.bfloat16, torch.float16)
SHAPES = [  # shape, channel_dim with an epsilon per channel, or None with one for all
    ((), None),
    ((7,), None),
    ((5,), 0),
    ((0, 3), 1),
    ((4, 3), 1),
    ((2, 3, 5), -1),
    ((2, 3, 4, 2), 1),
]


def samples(
    tensors: int, op: OpInfo, device: str, dtype: torch.dtype, requires_grad: bool, **_: Any
) -> Iterator[SampleInput]:
    """``tensors`` inputs, whose elements are off the kink at 0, then epsilon."""
    generator = torch.Generator(device).manual_seed(0)
    for shape, channel_dim in SHAPES:
        size = torch.empty(shape, dtype=torch.float64, device=device)
        inputs = []
        for _i in range(tensors):
            x = size.uniform_(0.1, 2.5, generator=generator).clone()
            inputs.append(x * (size.bernoulli_(0.5, generator=generator) * 2 - 1))
        channels = 1 if channel_dim is None else shape[channel_dim]
        inputs.append(torch.linspace(-0.7, 0.4, channels, dtype=torch.float64, device=device))
        first, *rest = (x.to(dtype).requires_grad_(requires_grad) for x in inputs)
        yield SampleInput(first, args=tuple(rest), kwargs={"channel_dim": channel_dim or 0})


def numpy_crrelu(x: Any, epsilon: Any, *, channel_dim: int) -> Any:
    wide = np.asarray(x, dtype=np.float64)
    shape = [1] * wide.ndim
    if epsilon.size > 1:
        shape[channel_dim] = -1
    e = np.asarray(epsilon, dtype=np.float64).reshape(shape)
    return (np.maximum(wide, 0) + e * wide * np.exp(-(wide**2) / 2)).astype(x.dtype)


def numpy_crrelu_glu(gate: Any, up: Any, epsilon: Any, *, channel_dim: int) -> Any:
    value = numpy_crrelu(gate.astype(np.float64), epsilon, channel_dim=channel_dim)
    return (value * up).astype(gate.dtype)


def op_info(function: Any, tensors: int, ref: Any) -> OpInfo:
    return OpInfo(
        function.__name__,
        op=function,
        ref=ref,
        dtypes=DTYPES,
        dtypesIfCUDA=DTYPES,
        sample_inputs_func=partial(samples, tensors),
        supports_out=False,
        supports_forward_ad=True,
        supports_fwgrad_bwgrad=True,
        supports_gradgrad=True,
    )


OPS = [
    op_info(crrelu_ext.crrelu, 1, numpy_crrelu),
    op_info(crrelu_ext.crrelu_glu, 2, numpy_crrelu_glu),
]
op_db.extend(OPS)
every_dtype = ops(OPS)
float64 = ops(OPS, allowed_dtypes=(torch.float64,))


def tensors_of(sample: SampleInput) -> tuple[Tensor, ...]:
    return (sample.input, *sample.args)


class TestOpInfo(TestCase):
    @every_dtype
    def test_numpy_reference(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        for sample in op.sample_inputs(device, dtype):
            if dtype in (torch.float32, torch.float64):
                self.compare_with_reference(op, op.ref, sample)
            else:  # numpy has no bfloat16: the same numbers, widened
                actual = op(*tensors_of(sample), **sample.kwargs)
                wide = [x.double().cpu().numpy() for x in tensors_of(sample)]
                assert op.ref is not None
                exact = torch.as_tensor(op.ref(*wide, **sample.kwargs), device=device)
                assert_close(actual, exact.to(dtype))

    @ops(OPS, allowed_dtypes=(torch.float32,))
    def test_dtypes(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        tried = [*DTYPES, torch.int64, torch.int8, torch.bool, torch.complex64]
        for other in tried:
            sample = next(iter(op.sample_inputs(device, dtype)))
            tensors = [x.to(other) for x in tensors_of(sample)]
            if other in op.supported_dtypes(device):
                assert op(*tensors, **sample.kwargs).dtype == other
            else:
                with pytest.raises(TypeError, match="has dtype"):
                    op(*tensors, **sample.kwargs)

    @every_dtype
    def test_noncontiguous_samples(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            apart = sample.noncontiguous()
            expected = op(*tensors_of(sample), **sample.kwargs)
            actual = op(*tensors_of(apart), **apart.kwargs)
            assert_close(actual, expected, rtol=0, atol=0)
            grad_output = torch.randn_like(expected)
            assert_close(
                torch.autograd.grad(actual, tensors_of(apart), grad_output),
                torch.autograd.grad(expected, tensors_of(sample), grad_output),
            )

    @float64
    def test_gradients(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            gradcheck(
                partial(op, **sample.kwargs),
                tensors_of(sample),
                check_batched_grad=True,
                check_forward_ad=True,
                check_batched_forward_grad=True,
            )

    @float64
    def test_double_backward(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            gradgradcheck(
                partial(op, **sample.kwargs),
                tensors_of(sample),
                check_batched_grad=True,
                check_fwd_over_rev=True,
                check_rev_over_rev=True,
            )

    @float64
    def test_vmap(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """Over any of the arguments, the batch at any place: as one call after another."""
        for sample in op.sample_inputs(device, dtype):
            tensors = tensors_of(sample)
            function = partial(op, **sample.kwargs)
            for batched in range(1, 2 ** len(tensors)):
                for last in (False, True):
                    in_dims = tuple(
                        (x.dim() if last else 0) if batched >> i & 1 else None
                        for i, x in enumerate(tensors)
                    )
                    stacked = [
                        x if dim is None else torch.stack([x, x * 0.5, -x], dim)
                        for x, dim in zip(tensors, in_dims, strict=True)
                    ]
                    expected = torch.stack(
                        [
                            function(
                                *(
                                    x if dim is None else x.select(dim, i)
                                    for x, dim in zip(stacked, in_dims, strict=True)
                                )
                            )
                            for i in range(3)
                        ]
                    )
                    assert_close(vmap(function, in_dims=in_dims)(*stacked), expected)

    @float64
    def test_compositions(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """jvp, vjp, and each inside the other and inside vmap, against one another."""
        for sample in op.sample_inputs(device, dtype):
            tensors = tensors_of(sample)
            function = partial(op, **sample.kwargs)
            tangents = tuple(torch.randn_like(x) for x in tensors)
            output, tangent = jvp(function, tensors, tangents)[:2]
            pullback = vjp(function, *tensors)[1]
            cotangent = torch.randn_like(output)
            gradients = pullback(cotangent)
            pairing = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))
            assert_close((cotangent * tangent).sum(), pairing)

            def pulled(*tensors: Tensor, f: Any = function, c: Tensor = cotangent) -> Any:
                return vjp(f, *tensors)[1](c)

            def pushed(*tensors: Tensor, f: Any = function, t: Any = tangents) -> Tensor:
                return jvp(f, tensors, t)[1]

            # The Hessian of <cotangent, f> with the tangents, forward over reverse and reverse over
            # forward: symmetric, so the same.
            one = jvp(pulled, tensors, tangents)[1]
            other = vjp(pushed, *tensors)[1](cotangent)
            assert_close(one, other)
            if output.numel():
                every = tuple(range(len(tensors)))
                assert_close(
                    jacrev(function, argnums=every)(*tensors),
                    jacfwd(function, argnums=every)(*tensors),
                )

    @every_dtype
    def test_fake_and_meta(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        for sample in op.sample_inputs(device, dtype):
            fake_check(op, tensors_of(sample), sample.kwargs)
            on_meta = op(*(x.to("meta") for x in tensors_of(sample)), **sample.kwargs)
            expected = op(*tensors_of(sample), **sample.kwargs)
            assert (on_meta.shape, on_meta.dtype, on_meta.stride()) == (
                expected.shape,
                expected.dtype,
                expected.stride(),
            )

    @ops(OPS, allowed_dtypes=(torch.float32,))
    def test_tracing(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            function = partial(op, **sample.kwargs)
            make_fx_check(function, tensors_of(sample), {}, "symbolic", assert_close)
            aot_autograd_check(
                function, tensors_of(sample), {}, dynamic=True, try_check_data_specialization="auto"
            )

    @ops(OPS, allowed_dtypes=(torch.float32,))
    def test_tensor_subclasses(self, device: str, dtype: torch.dtype, op: OpInfo) -> None:
        """Under a tensor subclass and its mode: forward, backward, forward mode."""
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            args, kwargs = tensors_of(sample), sample.kwargs
            check_with_mode(op, args, kwargs, assert_close)
            if args[0].numel():
                check_backward_formula(op.get_op(), args, kwargs, None, None, assert_close)
                check_forward_ad_formula(op.get_op(), args, kwargs, None, assert_close)


instantiate_device_type_tests(TestOpInfo, globals(), only_for=("cpu", "cuda"))
