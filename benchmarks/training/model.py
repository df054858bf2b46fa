"""A small vision transformer (Dosovitskiy et al., arXiv 2010.11929) out of torch's own layers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class VisionTransformer(nn.Module):
    """Patches -> pre-norm encoder -> mean over the patches -> classes.

    Takes float images of shape (N, channels, image_size, image_size), returns logits (N, classes).

    ``activation`` makes one activation module. nn.TransformerEncoder copies its layer ``depth``
    times, and with it the module, so each layer learns its own parameters. At inference torch
    replaces the layer by a fused kernel only if the activation is its own ReLU or GELU.
    """

    def __init__(
        self,
        activation: Callable[[], nn.Module],
        *,
        image_size: int = 8,
        patch_size: int = 2,
        channels: int = 1,
        classes: int = 10,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        hidden: int = 256,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.position = nn.Parameter(torch.empty((image_size // patch_size) ** 2, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, hidden, dropout, activation(), batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, classes)
        self._initialize()

    def _initialize(self) -> None:
        """Fresh weights for each layer: the encoder's copies would otherwise start out equal."""
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter.flatten(1))
        # As large as the patches' own features: a small start takes many epochs to be heard.
        nn.init.normal_(self.position)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)  # (N, patches, width)
        return self.head(self.encoder(patches + self.position).mean(dim=1))
