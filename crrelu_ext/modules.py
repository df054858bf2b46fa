"""CRReLU as a layer."""

from __future__ import annotations

from numbers import Integral, Real

import torch
from torch import Tensor, nn

from crrelu_ext import reference
from crrelu_ext.functional import crrelu


class CRReLU(nn.Module):
    """f(x) = max(0, x) + ε · x · exp(-x²/2) with a learnable ε.

    Args:
        num_parameters: 1, or the number of channels to have an epsilon each.
        init: the start of every epsilon. 0.01 is the published start; under a standard normal
            input the output's entropy falls towards *negative* epsilons, and most of those found
            in trained networks are negative.
        channel_dim: the input's dimension that the channels lie along; transformers want -1.
        device, dtype: of the parameter. float32 serves inputs of every 16-bit type as well.

    Shapes:
        input and output alike, any; ``epsilon`` (num_parameters,).

    Leave epsilon out of weight decay: it would be pulled to 0, which is ReLU.

    Raises:
        ValueError, TypeError: an argument that is not as said.
    """

    def __init__(
        self,
        num_parameters: int = 1,
        init: float = 0.01,
        *,
        channel_dim: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, number in (("num_parameters", num_parameters), ("channel_dim", channel_dim)):
            if not isinstance(number, int | Integral) or isinstance(number, bool):
                raise TypeError(f"{name} is {number!r}; allowed is an int")
        if num_parameters < 1:
            raise ValueError(f"num_parameters is {num_parameters}; allowed are 1 and more")
        if not isinstance(init, float | Real):
            raise TypeError(f"init is {init!r}; allowed is a float")
        if dtype not in (None, *reference.DTYPES):
            raise TypeError(f"dtype is {dtype}; allowed are float32, float64, bfloat16 and float16")
        of = dtype or torch.get_default_dtype()
        if not abs(init) <= torch.finfo(of).max:
            raise ValueError(f"init is {init}; allowed are finite numbers of {of}")
        super().__init__()
        self.num_parameters = int(num_parameters)
        self.init = float(init)
        self.channel_dim = int(channel_dim)
        self.epsilon = nn.Parameter(torch.empty(self.num_parameters, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets every epsilon back to its start."""
        nn.init.constant_(self.epsilon, self.init)

    def forward(self, input: Tensor) -> Tensor:
        # nn.Module finds a parameter last of all its attributes: this saves a tenth of the call.
        # Where something has replaced the parameter, it is an attribute like any other.
        epsilon = self._parameters.get("epsilon")
        if epsilon is None:
            epsilon = self.epsilon
        return crrelu(input, epsilon, channel_dim=self.channel_dim)

    def extra_repr(self) -> str:
        return (
            f"num_parameters={self.num_parameters}, init={self.init}, "
            f"channel_dim={self.channel_dim}"
        )
