"""The images: scikit-learn's bundled handwritten digits, 1797 grey images of 8 x 8 pixels."""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F


class Images(NamedTuple):
    """Images as float32 of shape (N, 1, 8, 8), labels as int64 of shape (N,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load(test_fraction: float = 0.25, split_seed: int = 0) -> Images:
    """The digits, split by class into training and test images, standardized by the former.

    The split depends on ``split_seed`` alone, so that every run is tested on the same images.
    """
    digits = load_digits()
    train_images, test_images, train_labels, test_labels = train_test_split(
        torch.tensor(digits.images, dtype=torch.float32)[:, None],
        torch.tensor(digits.target, dtype=torch.int64),
        test_size=test_fraction,
        random_state=split_seed,
        stratify=digits.target,
    )
    deviation, mean = torch.std_mean(train_images)
    train_images, test_images = ((x - mean) / deviation for x in (train_images, test_images))
    return Images(train_images, train_labels, test_images, test_labels)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moves half of the images, at random, by up to one pixel each way: (N, C, H, W) -> same.

    The pixels that come in repeat the border.
    """
    count, _, height, width = images.shape
    windows = F.pad(images, (1, 1, 1, 1), mode="replicate").unfold(2, height, 1).unfold(3, width, 1)
    stay = torch.rand(count, generator=generator) < 0.5
    offset = torch.randint(3, (2, count), generator=generator).masked_fill_(stay, 1)
    return windows[torch.arange(count), :, offset[0], offset[1]]  # from (N, C, 3, 3, H, W)
