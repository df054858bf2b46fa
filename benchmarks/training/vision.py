"""Vision models: a small transformer of torch's own layers, and those of timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .activations import Activation, Channels, place
from .checkpoint import load_weights
from .recipe import Recipe
from .task import Batch


class Images(NamedTuple):
    """The shape of a dataset's images and the number of its classes."""

    channels: int
    size: int
    classes: int


class VisionTransformer(nn.Module):
    """Patches -> pre-norm encoder -> mean over the patches -> classes (after Dosovitskiy et al.,
    arXiv 2010.11929).

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


class Distillation:
    """Half of the loss from the labels, half from a teacher's, as DeiT does (hard distillation)."""

    def __init__(self, teacher: nn.Module) -> None:
        self._teacher = teacher.eval().requires_grad_(False)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        images, labels = batch
        by_labels, by_teacher = model(images)
        with torch.no_grad():
            taught = self._teacher.to(images.device)(images).argmax(1)
        return (F.cross_entropy(by_labels, labels) + F.cross_entropy(by_teacher, taught)) / 2


def classify(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy in nats."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def measure(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    images, labels = batch
    logits = model(images).float()
    return {
        "count": torch.tensor(float(len(labels)), device=logits.device),
        "loss": F.cross_entropy(logits, labels, reduction="sum"),
        "accuracy": (logits.argmax(1) == labels).sum(),
    }


def build(recipe: Recipe, activation: Activation, images: Images) -> nn.Module:
    """The model for images of that shape.

    Raises:
        ValueError: timm has no model of that name, or it does not take the arguments.
        ImportError: timm is not installed.
    """
    if recipe.model == "digits-vit":
        width = recipe.model_args.get("hidden", 256)
        try:
            return VisionTransformer(
                lambda: activation.module(Channels(width, -1)),
                image_size=images.size,
                channels=images.channels,
                classes=images.classes,
                **recipe.model_args,
            )
        except (AssertionError, ArithmeticError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"model_args is {recipe.model_args!r}: {error!r}") from error
    model = from_timm(recipe.model, recipe, images)
    place(model, activation, torch.zeros(1, images.channels, images.size, images.size))
    return model


def objective(recipe: Recipe, model: nn.Module, images: Images) -> Callable[..., Tensor]:
    """The loss: the labels', or with a teacher the teacher's as well.

    Raises:
        ValueError: the model has no output for a teacher.
    """
    if recipe.teacher is None:
        return classify
    if not hasattr(model, "set_distilled_training"):
        raise ValueError(
            f"teacher is {recipe.teacher!r}, but model {recipe.model!r} cannot be taught; allowed "
            "are models with a distillation token, such as deit_tiny_distilled_patch16_224"
        )
    import timm

    if recipe.teacher_weights is None and timm.is_model(recipe.teacher):
        knows = timm.get_pretrained_cfg(recipe.teacher).num_classes
        if knows != images.classes:
            raise ValueError(
                f"teacher_weights is missing: the pretrained {recipe.teacher!r} knows {knows} "
                f"classes, and the data have {images.classes}"
            )
    model.set_distilled_training(True)  # type: ignore[operator]
    teacher = from_timm(recipe.teacher, recipe, images, pretrained=recipe.teacher_weights is None)
    if recipe.teacher_weights is not None:
        said = f"teacher_weights is {recipe.teacher_weights!r}"
        load_weights(recipe.teacher_weights, teacher, said)
    return Distillation(teacher)


def from_timm(name: str, recipe: Recipe, images: Images, *, pretrained: bool = False) -> nn.Module:
    """timm's model for images of that size: small images are cut into as many patches as large ones
    are, and a ResNet looks at them without its coarse first steps, as is usual for CIFAR."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"model {name!r} needs timm and torchvision, which the extra `recipes` installs: "
            f"{error}"
        ) from error
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name.split('_')[0]}*")[:8]
        raise ValueError(
            f"model is {name!r}; allowed are digits-vit and the models of timm, such as "
            f"{', '.join(similar or timm.list_models('vit_tiny*'))}"
        )
    small = images.size <= 64
    arguments: dict[str, Any] = {"num_classes": images.classes, "in_chans": images.channels}
    if timm.models.model_entrypoint(name).__module__.endswith(
        ("vision_transformer", "deit", "tnt")
    ):
        arguments["img_size"] = images.size
        if small:
            arguments["patch_size"] = max(2, images.size // 8)
        if small and name.startswith("tnt"):
            arguments["first_stride"] = 2
    published = 0.1 if name.startswith("vit_tiny") else 0.0
    if drop_path := published if recipe.drop_path is None else recipe.drop_path:
        arguments["drop_path_rate"] = drop_path
    if name == recipe.model:
        arguments |= recipe.model_args
    try:
        model = timm.create_model(name, pretrained=pretrained, **arguments)
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ValueError(f"model_args is {recipe.model_args!r}: {name} says {error!r}") from error
    if small and isinstance(model, timm.models.ResNet):
        model.conv1 = nn.Conv2d(images.channels, model.conv1.out_channels, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model
