"""Images: scikit-learn's digits, CIFAR, and ImageNet as folders or as tar shards."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F

from .processes import Processes
from .recipe import Recipe
from .shards import Shards
from .task import Batch, DataError, Key, Source, generator, indexed, mix
from .vision import Images

Transform = Callable[[Any], Tensor]
CLASSES = {"cifar10": 10, "cifar100": 100}
# Mean and deviation of the channels, as is usual for each.
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def load(recipe: Recipe, processes: Processes) -> tuple[Images, Source, Source]:
    """The images' shape, those to train on, and those to test on.

    Raises:
        DataError: they are not there or broken.
        ValueError: data_dir is missing. ImportError: torchvision is.
    """
    if recipe.dataset == "digits":
        train, test = Digits.load(recipe.seed)
        return Images(1, 8, 10), *indexed(train, test, recipe, processes)
    if recipe.data_dir is None:
        raise ValueError(
            f"data_dir is missing; dataset {recipe.dataset!r} needs the folder where it lies"
        )
    if find_spec("torchvision") is None:
        raise ImportError(
            f"dataset {recipe.dataset!r} needs torchvision, which the extra `recipes` installs"
        )
    folder = Path(recipe.data_dir)
    if recipe.dataset == "imagenet-shards":
        size = recipe.image_size or 224
        on_train, on_test = imagenet_transforms(size)
        shards = Shards(folder, "train", on_train, recipe, processes)
        of_test = Shards(folder, "val", on_test, recipe, processes)
        if of_test.classes > shards.classes:
            raise DataError(
                f"{folder}/val-*.tar have {of_test.classes} classes, {folder}/train-*.tar have "
                f"{shards.classes}"
            )
        return Images(3, size, shards.classes), shards, of_test
    size = recipe.image_size or (32 if recipe.dataset in CLASSES else 224)
    if recipe.dataset in CLASSES:
        classes = CLASSES[recipe.dataset]
        sets = [_cifar(folder, recipe, train) for train in (True, False)]
        transforms = _cifar_transforms(recipe.dataset, size)
    else:
        sets = [_folder(folder / name) for name in ("train", "val")]
        classes = len(sets[0].classes)
        if sets[1].classes != sets[0].classes:
            raise DataError(f"{folder}/val has other classes than {folder}/train")
        transforms = imagenet_transforms(size)
    pictures = (
        Transformed(images, transform, recipe.seed)
        for images, transform in zip(sets, transforms, strict=True)
    )
    return Images(3, size, classes), *indexed(next(pictures), next(pictures), recipe, processes)


class Digits:
    """Handwritten digits, float32 of shape (1, 8, 8), and their labels; moved about for training.

    1797 grey images come with scikit-learn. The split into three parts for training and one for
    testing is the same for every seed; both are standardized by the former.
    """

    def __init__(self, images: Tensor, labels: Tensor, seed: int | None) -> None:
        self._images, self._labels, self._seed = images, labels, seed
        self._epoch = -1

    @classmethod
    def load(cls, seed: int) -> tuple[Digits, Digits]:
        digits = load_digits()
        train_images, test_images, train_labels, test_labels = train_test_split(
            torch.tensor(digits.images, dtype=torch.float32)[:, None],
            torch.tensor(digits.target, dtype=torch.int64),
            test_size=0.25,
            random_state=0,
            stratify=digits.target,
        )
        deviation, mean = torch.std_mean(train_images)
        train_images, test_images = ((x - mean) / deviation for x in (train_images, test_images))
        return cls(train_images, train_labels, seed), cls(test_images, test_labels, None)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitems__(self, keys: list[Key]) -> Batch:
        index = torch.tensor([index for _, index in keys])
        images = self._images[index]
        if self._seed is not None:
            images = shift(images, self._offsets(keys[0][0])[:, index])
        return images, self._labels[index]

    def _offsets(self, epoch: int) -> Tensor:
        """For each image of the epoch: half of them stay, the others move by up to one pixel."""
        if epoch != self._epoch:
            chance = generator(self._seed or 0, epoch, 1)
            stay = torch.rand(len(self), generator=chance) < 0.5
            moves = torch.randint(3, (2, len(self)), generator=chance)
            self._moves, self._epoch = moves.masked_fill_(stay, 1), epoch
        return self._moves


def shift(images: Tensor, offsets: Tensor) -> Tensor:
    """Moves images (N, C, H, W) by offsets (2, N), of which 1 is none, 0 and 2 one pixel each way.

    The pixels that come in repeat the border.
    """
    count, _, height, width = images.shape
    windows = F.pad(images, (1, 1, 1, 1), mode="replicate").unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count), :, offsets[0], offsets[1]]  # from (N, C, 3, 3, H, W)


class Transformed:
    """Pictures of a torchvision dataset as tensors; the random ones by seed, epoch and index."""

    def __init__(self, pictures: Any, transform: Transform, seed: int) -> None:
        self._pictures, self._transform, self._seed = pictures, transform, seed

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitems__(self, keys: list[Key]) -> Batch:
        images, labels = [], []
        with torch.random.fork_rng(devices=[]):
            for epoch, index in keys:
                try:
                    picture, label = self._pictures[index]
                except (OSError, SyntaxError, ValueError) as error:
                    files = getattr(self._pictures, "samples", None)
                    name = files[index][0] if files else f"picture {index}"
                    raise DataError(f"{name} cannot be read: {error}") from error
                torch.default_generator.manual_seed(mix(self._seed, epoch, index))
                images.append(self._transform(picture))
                labels.append(label)
        return torch.stack(images), torch.tensor(labels)


def _cifar(folder: Path, recipe: Recipe, train: bool) -> Any:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[recipe.dataset]
    try:
        return kind(str(folder), train=train, download=recipe.download)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{recipe.dataset} in data_dir {str(folder)!r} is missing or broken ({error}); "
            "--download true fetches it"
        ) from error


def _folder(folder: Path) -> Any:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(str(folder))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{folder} is no folder of one folder of pictures for each class: {error}"
        ) from error


def _cifar_transforms(dataset: str, size: int) -> tuple[Transform, Transform]:
    from torchvision import transforms as T

    resize = [T.Resize(size)] if size != 32 else []
    tensor = [T.ToTensor(), T.Normalize(*STATISTICS[dataset])]
    moved = [T.RandomCrop(32, padding=4), T.RandomHorizontalFlip()]
    return T.Compose([*moved, *resize, *tensor]), T.Compose([*resize, *tensor])


def imagenet_transforms(size: int) -> tuple[Transform, Transform]:
    """For training a random part of the picture; for testing its middle, 7/8 of it."""
    from torchvision import transforms as T

    tensor = [T.ToTensor(), T.Normalize(*STATISTICS["imagenet"])]
    middle = [T.Resize(math.ceil(size * 8 / 7)), T.CenterCrop(size)]
    return (
        T.Compose([T.RandomResizedCrop(size), T.RandomHorizontalFlip(), *tensor]),
        T.Compose([*middle, *tensor]),
    )
