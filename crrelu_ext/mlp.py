"""A transformer's feed-forward block that keeps one hidden tensor less for the backward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _are_functorch_transforms_active
from torch.compiler import is_compiling
from torch.jit._trace import is_tracing
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from crrelu_ext._ops import native
from crrelu_ext.functional import crrelu
from crrelu_ext.modules import CRReLU


class CRReLUMLP(nn.Module):
    """fc2(CRReLU(fc1(x))).

    Between the passes it keeps x and fc1(x) alone: the activation, which the backward pass needs
    for fc2's weight, is computed again there. With hidden = 4 · width that is 5/9 of what the same
    three layers in a sequence keep. Under torch.compile it is that sequence, since the compiler
    chooses by itself what to keep; and where ``act`` or ``fc2`` was replaced by a module of another
    kind, or has hooks.

    Args:
        in_features, hidden_features: the widths, positive.
        out_features: as ``in_features`` if None.
        bias: whether the two linear layers have one.
        per_channel: an epsilon for each hidden feature, rather than one for all.
        init: the start of every epsilon.
        device, dtype: of the parameters; epsilon's dtype too.

    Shapes:
        input (..., in_features), output (..., out_features).

    Raises:
        ValueError, TypeError: an argument that is not as said.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        *,
        bias: bool = True,
        per_channel: bool = False,
        init: float = 0.01,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        out_features = in_features if out_features is None else out_features
        widths = {
            "in_features": in_features,
            "hidden_features": hidden_features,
            "out_features": out_features,
        }
        for name, width in widths.items():
            if not isinstance(width, int):
                raise TypeError(f"{name} is {width!r}; allowed is an int")
            if width < 1:
                raise ValueError(f"{name} is {width}; allowed are 1 and more")
        channels = hidden_features if per_channel else 1
        act = CRReLU(channels, init, channel_dim=-1, device=device, dtype=dtype)  # checks dtype too
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features, bias, device=device, dtype=dtype)
        self.act = act
        self.fc2 = nn.Linear(hidden_features, out_features, bias, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        hidden = self.fc1(input)
        if is_compiling() or not torch.is_grad_enabled() or not self._takes_less(hidden):
            return self.fc2(self.act(hidden))
        weight: Tensor = self.fc2.weight
        bias: Tensor | None = self.fc2.bias
        if torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        return _ActivateAndProject.apply(hidden, self.act.epsilon, weight, bias)

    def _takes_less(self, hidden: Tensor) -> bool:
        """Whether _ActivateAndProject does what act and fc2 do, and nobody watches them."""
        act = self.act
        if not native or not isinstance(hidden, Tensor) or hidden.is_nested:  # a Proxy of torch.fx
            return False
        if is_tracing() or _has_any_global_hook() or _are_functorch_transforms_active():
            return False
        if not (_is_plain(act, CRReLU) and _is_plain(self.fc2, nn.Linear)):
            return False
        return act.num_parameters == 1 or act.channel_dim == -1


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    hooks = module._forward_hooks, module._forward_pre_hooks
    more_hooks = module._backward_hooks, module._backward_pre_hooks
    own = "forward" in vars(module)  # as those patch it who offload weights
    return type(module) is kind and not own and not any((*hooks, *more_hooks))


def _no_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """What turns autocast off where it is on; elsewhere that would only take time."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


class _ActivateAndProject(torch.autograd.Function):
    """CRReLU(hidden) · weightᵀ + bias, which saves its arguments and no activation."""

    # No setup_context, with which every call would take 12 µs more, and several times that while
    # the caches are full of matrices.
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, epsilon: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(hidden, epsilon, weight)
        ctx.save_for_forward(hidden, epsilon, weight)
        with _no_autocast(hidden):
            return F.linear(crrelu(hidden, epsilon, channel_dim=-1), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        with _no_autocast(grad_output):
            return _ActivateAndProject.gradients(ctx, grad_output)

    @staticmethod
    def gradients(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        hidden, epsilon, weight = ctx.saved_tensors
        for_hidden, for_epsilon, for_weight, for_bias = ctx.needs_input_grad
        grad_hidden = grad_epsilon = grad_weight = grad_bias = None
        if for_hidden or for_epsilon:
            grad_hidden, grad_epsilon = torch.ops.crrelu_ext.crrelu_backward(
                grad_output @ weight, hidden, epsilon, -1, [for_hidden, for_epsilon]
            )
        rows = grad_output.reshape(-1, grad_output.shape[-1])
        if for_weight:  # now that hidden is in the caches
            activation = crrelu(hidden, epsilon, channel_dim=-1)
            grad_weight = rows.t() @ activation.reshape(-1, hidden.shape[-1])
        if for_bias:
            grad_bias = rows.sum(0)
        return grad_hidden, grad_epsilon, grad_weight, grad_bias

    @staticmethod
    def jvp(
        ctx: Any,
        hidden_tangent: Tensor | None,
        epsilon_tangent: Tensor | None,
        weight_tangent: Tensor | None,
        bias_tangent: Tensor | None,
    ) -> Tensor | None:
        hidden, epsilon, weight = ctx.saved_tensors
        terms = []
        if hidden_tangent is not None:  # element by element, the tangent is f' times it
            tangent, _ = torch.ops.crrelu_ext.crrelu_backward(
                hidden_tangent, hidden, epsilon, -1, [True, False]
            )
            terms.append(F.linear(tangent, weight))
        if epsilon_tangent is not None:  # in which f is linear
            bump = crrelu(hidden, epsilon_tangent, channel_dim=-1) - F.relu(hidden)
            terms.append(F.linear(bump, weight))
        if weight_tangent is not None:
            terms.append(F.linear(crrelu(hidden, epsilon, channel_dim=-1), weight_tangent))
        if bias_tangent is not None:
            terms.append(bias_tangent.expand(*hidden.shape[:-1], -1))
        return sum(terms[1:], terms[0]) if terms else None
