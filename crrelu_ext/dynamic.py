"""An activation that is derived anew while the network trains: the layer, which measures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import functional as F

from crrelu_ext._ops import native
from crrelu_ext.derived import DerivedActivation

REACH = 8
"""Tables and histograms lie this many scales on both sides of the location."""
BINS_PER_SCALE = 16
BINS = 2 * REACH * BINS_PER_SCALE
"""Beside them the counts have three places: below, above, and not finite."""
BELOW, ABOVE, NOT_FINITE = 0, BINS + 1, BINS + 2


def smooth_relu(x: Tensor) -> Tensor:
    """0.02 x + 0.98 softplus(4 x)/4: like ReLU, smooth, and strictly increasing.

    The leak is what the theory needs: where f' vanishes faster than the density, no step is small
    enough to keep f monotone.
    """
    return 0.02 * x + 0.98 * F.softplus(4 * x) / 4


class DynamicActivation(DerivedActivation):
    """A table that an :class:`crrelu_ext.ActivationScheduler` replaces as the network trains.

    In training mode each forward pass counts some elements of its input in a histogram, in bins of
    a sixteenth of a scale; elements that are not finite are counted apart. Nothing is counted while
    gradients are computed, so that checkpointed layers, which are evaluated again then, count each
    element once; nor in eval mode, nor without the native kernels. Without a scheduler the function
    stays as it is.

    Args:
        activation: where to start: increasing and differentiable, on float64 tensors. None takes
            :func:`smooth_relu`, as smooth in the input's scale, once a scheduler has measured that,
            as it is in units of 1.
        knots: of the table.
        samples: about how many elements of each input are counted.
        device: of the table.

    Attributes:
        place: (2,) float32, the location and scale of the input, by which the bins are laid.
        counts: (259,) int64, since the last update; not in the state_dict of the module but in that
            of the scheduler, and no buffer, since DistributedDataParallel would overwrite it.

    Raises:
        ValueError: an activation that is not increasing over the first table, or as
            :class:`DerivedActivation`.
    """

    place: Tensor

    def __init__(
        self,
        activation: Callable[[Tensor], Tensor] | None = None,
        *,
        knots: int = 64,
        samples: int = 1024,
        device: torch.device | str | None = None,
    ) -> None:
        start = smooth_relu if activation is None else activation
        super().__init__(start, lower=-REACH, upper=REACH, knots=knots, device=device)
        if not (self.table[1].diff() > 0).all():
            raise ValueError(
                "activation is not increasing from -8 to 8; allowed are those that are"
            )
        if samples < 1:
            raise ValueError(f"samples is {samples}; allowed are 1 and more")
        self.activation = activation
        self.samples = samples
        self.register_buffer("place", torch.tensor([0.0, 1.0], device=device))
        self.counts = torch.zeros(BINS + 3, dtype=torch.int64, device=device)

    def forward(self, input: Tensor) -> Tensor:
        if self.training and native and (is_compiling() or not _in_backward()):
            torch.ops.crrelu_ext.count_(input.detach(), self.place, self.samples, self.counts)
        return super().forward(input)

    def start(self, x: Tensor, scale: Tensor) -> Tensor:
        """The function that the layer starts with, given the scale of its input."""
        return scale * smooth_relu(x / scale) if self.activation is None else self.activation(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        place = self.place
        super()._apply(fn, recurse)
        self.place = place.to(self.place.device)  # float32, whatever the model's dtype
        self.counts = fn(self.counts)
        return self


def _in_backward() -> bool:
    """Whether autograd is computing gradients on this thread."""
    return torch._C._current_graph_task_id() != -1
