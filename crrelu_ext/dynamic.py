"""Activations that follow their input while the network trains: the layers, which measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import functional as F

from crrelu_ext._nested import is_jagged
from crrelu_ext._ops import _C
from crrelu_ext.derived import DerivedActivation, tabulate
from crrelu_ext.elementwise import Function
from crrelu_ext.functional import crrelu_at
from crrelu_ext.modules import CRReLU

REACH = 8
"""Tables and histograms lie this many scales on both sides of the location."""
BINS_PER_SCALE = 16
BINS = 2 * REACH * BINS_PER_SCALE
"""Beside them the counts have three places: below, above, and not finite."""
BELOW, ABOVE, NOT_FINITE = 0, BINS + 1, BINS + 2


def smooth_relu(x: Tensor) -> Tensor:
    """0.02 x + 0.98 softplus(8 x)/8: like ReLU, smooth, and strictly increasing.

    The leak is what the theory needs: where f' vanishes faster than the density, no step is small
    enough to keep f monotone.
    """
    return 0.02 * x + 0.98 * F.softplus(8 * x) / 8


class Histogram(nn.Module):
    """Counts, in training mode, some elements of each input in bins of a sixteenth of a scale.

    Nothing is counted while gradients are computed, so that checkpointed layers, which are
    evaluated again then, count each element once; nor without the native kernels. Of a nested
    tensor its values count, of a DTensor this rank's shard.

    Args:
        channels: 1, or the size of the input along ``channel_dim``, for bins of each channel's own.
        channel_dim: the input's dimension that channels lie along.
        samples: about how many elements of each input are counted; at least four of each channel.
        device: of the buffers.

    Attributes:
        place: (2, channels) float32, location and scale of the input, by which the bins are laid.
        counts: (channels, 259) int64, since they were last taken; not in the state_dict of the
            module but in that of the scheduler, and no buffer, since DistributedDataParallel would
            overwrite it.
    """

    place: Tensor

    def __init__(
        self,
        channels: int,
        channel_dim: int,
        samples: int,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(f"samples is {samples!r}; allowed are 1, 2, 3 …")
        self.channel_dim = channel_dim
        self.samples = samples
        place = torch.empty(2, channels, dtype=torch.float32, device=device)
        self.register_buffer("place", place)
        self.counts = torch.empty(channels, BINS + 3, dtype=torch.int64, device=device)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Empties the bins, and lays them around 0 in units of 1."""
        self.place[0], self.place[1] = 0.0, 1.0
        self.counts.zero_()

    def count(self, input: Tensor) -> None:
        """No forward pass of a module: to get to that takes as long as to count."""
        if self.training and _C is not None:
            if self.counts.device != self.place.device:  # fully_shard moves buffers past _apply
                self.follow_place()
            of = count if is_compiling() else _C.count_
            of(input, self.place, self.samples, self.channel_dim, self.counts)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        place = self.place
        super()._apply(fn, recurse)
        if self.place.dtype != torch.float32:  # model.bfloat16() and the like
            self.place = place.to(self.place.device)
        self.follow_place()
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.follow_place()  # which may have been assigned

    def follow_place(self) -> None:
        """The counts go where the place is, as int64; those of a meta device are none."""
        if self.counts.is_meta:
            self.counts = torch.zeros_like(self.counts, device=self.place.device)
        self.counts = self.counts.to(self.place.device)


class DynamicActivation(DerivedActivation):
    """A table that an :class:`crrelu_ext.ActivationScheduler` replaces as the network trains.

    In training mode each forward pass counts some elements of its input; see :class:`Histogram`,
    which is the attribute ``histogram``. Without a scheduler the function stays as it is. The
    attribute ``error`` is that of the table at the start.

    Args:
        activation: where to start: increasing and differentiable, on float64 tensors. None takes
            :func:`smooth_relu`, as smooth in the input's scale, once a scheduler has measured that,
            as it is in units of 1.
        knots: of the table.
        samples: about how many elements of each input are counted.
        device: of the table.

    Raises:
        ValueError: an activation that is not increasing over the first table, or as
            :class:`DerivedActivation`.
    """

    activation: Function | None

    def __init__(
        self,
        activation: Function | None = None,
        *,
        knots: int = 64,
        samples: int = 1024,
        device: torch.device | str | None = None,
    ) -> None:
        start = smooth_relu if activation is None else activation
        super().__init__(start, lower=-REACH, upper=REACH, knots=knots, device="cpu")
        if not (self.table[1].diff() > 0).all():
            raise ValueError(
                "activation is not increasing from -8 to 8; allowed are those that are"
            )
        # Past nn.Module, for which a module here would be a part of the network.
        object.__setattr__(self, "activation", activation)
        self.histogram = Histogram(1, 0, samples, device)
        self.to(self.histogram.place.device)

    def reset_parameters(self) -> None:
        """Back to the start, in units of 1."""
        start = smooth_relu if self.activation is None else self.activation
        table, error = tabulate(start, -REACH, REACH, self.table.shape[1])
        self.table.copy_(table)
        self.error.fill_(error)

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)  # first, since it names what is wrong with an input
        self.histogram.count(input)
        return output

    def start(self, x: Tensor, scale: Tensor) -> Tensor:
        """The function that the layer starts with, given the scale of its input."""
        return scale * smooth_relu(x / scale) if self.activation is None else self.activation(x)


class DynamicCRReLU(CRReLU):
    """f(x) = max(0, x) + ε · (x - μ) · exp(-(x - μ)²/2σ²), ε learned, μ and σ measured.

    The correction that the theory derives for a normal input of mean μ and deviation σ, which an
    :class:`crrelu_ext.ActivationScheduler` measures as the network trains; without one they stay 0
    and 1, and this is :class:`CRReLU`. The attribute ``histogram`` (:class:`Histogram`) holds them.

    Args:
        num_parameters: 1, or the number of channels to have ε, μ and σ each.
        init: the start of every epsilon.
        channel_dim: the input's dimension that the channels lie along; transformers want -1.
        samples: about how many elements of each input are counted; at least four of each channel.
        device, dtype: of epsilon.

    Shapes:
        input and output alike, any; ``epsilon`` (num_parameters,).
    """

    def __init__(
        self,
        num_parameters: int = 1,
        init: float = 0.01,
        *,
        channel_dim: int = 1,
        samples: int = 1024,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_parameters, init, channel_dim=channel_dim, device=device, dtype=dtype)
        self.histogram = Histogram(num_parameters, channel_dim, samples, device)

    def forward(self, input: Tensor) -> Tensor:
        place = self.histogram.place
        output = crrelu_at(input, self.epsilon, place, channel_dim=self.channel_dim)
        self.histogram.count(input)
        return output


def local(tensor: Any) -> Tensor:
    """This rank's part of a DTensor; any other tensor itself."""
    # By its type, since a Proxy of torch.fx has any attribute.
    return tensor.to_local() if hasattr(type(tensor), "to_local") else tensor


def count(input: Tensor, place: Tensor, samples: int, channel_dim: int, counts: Tensor) -> None:
    """Of any tensor; the native entry for plain ones is `_C.count_`."""
    input = input.detach()
    if is_jagged(input):
        input = input.values()
        channel_dim -= channel_dim > 0  # values have no batch dimension
    input = local(input)  # the ranks' counts are added up later
    torch.ops.crrelu_ext.count_(input, local(place), samples, channel_dim, counts)
