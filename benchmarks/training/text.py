"""Text as tokens: the source code of Python's standard library, or the files of a folder."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .processes import Processes
from .recipe import Recipe
from .task import Batch, DataError, Key, Source, generator, indexed

TRAINING_BYTES, VALIDATION_BYTES = 4_000_000, 32_768
"""Of the standard library, so that every version of Python gives as much."""


class Tokens(NamedTuple):
    """Two texts that share no file, and the number of different tokens."""

    train: Tensor
    validation: Tensor
    vocabulary: int


def load(recipe: Recipe, processes: Processes) -> tuple[int, Source, Source]:
    """The vocabulary's size, the text to train on and the text to test on, in pieces.

    Raises:
        DataError: it is not there, or is not text.
        ValueError: data_dir is missing, or the text is too short.
    """
    tokens = standard_library() if recipe.dataset == "stdlib" else _folder(recipe)
    train = Pieces(tokens.train, recipe.context, recipe.seed)
    validation = Pieces(tokens.validation, recipe.context, None)
    return tokens.vocabulary, *indexed(train, validation, recipe, processes)


class Pieces:
    """Runs of ``context`` tokens; in training each epoch cuts the text at other places."""

    def __init__(self, tokens: Tensor, context: int, seed: int | None) -> None:
        if len(tokens) < 2 * context:
            raise ValueError(
                f"context is {context}; allowed are up to {len(tokens) // 2}, half of the text"
            )
        self._tokens, self._context, self._seed = tokens, context, seed

    def __len__(self) -> int:
        return len(self._tokens) // self._context - (self._seed is not None)

    def __getitems__(self, keys: list[Key]) -> Batch:
        offset = 0
        if self._seed is not None:
            chance = generator(self._seed, keys[0][0], 1)
            offset = int(torch.randint(self._context, (), generator=chance))
        starts = torch.tensor([index for _, index in keys])[:, None] * self._context + offset
        return (self._tokens[starts + torch.arange(self._context)].long(),)


@lru_cache(maxsize=1)
def standard_library() -> Tokens:
    """The bytes of the modules of Python's standard library; every eighth is for validation."""
    folder = Path(sysconfig.get_path("stdlib"))
    texts = [file.read_bytes() for file in sorted(folder.glob("*.py"))]
    if sum(map(len, texts)) < 1_000_000:
        raise DataError(f"{folder} holds no source code of Python's standard library")
    parts = ([t for i, t in enumerate(texts) if i % 8], texts[::8])
    train, validation = (
        _bytes(b"".join(part)[:limit])
        for part, limit in zip(parts, (TRAINING_BYTES, VALIDATION_BYTES), strict=True)
    )
    return Tokens(train, validation, 256)


def _folder(recipe: Recipe) -> Tokens:
    """train/**/*.txt and validation/**/*.txt, each file ended by the tokenizer's end of text.

    For the tokenizer ``bytes`` a line's end parts them.
    """
    if recipe.data_dir is None:
        raise ValueError("data_dir is missing; dataset 'text' needs the folder where it lies")
    train, validation = (
        sorted((Path(recipe.data_dir) / split).rglob("*.txt")) for split in ("train", "validation")
    )
    if not train or not validation:
        raise DataError(
            f"data_dir {recipe.data_dir!r} must hold train/*.txt and validation/*.txt; there are "
            f"{len(train)} and {len(validation)}"
        )
    if recipe.tokenizer == "bytes":
        as_bytes = (_bytes(_read(files).encode()) for files in (train, validation))
        return Tokens(next(as_bytes), next(as_bytes), 256)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(recipe.tokenizer)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded = (
        torch.cat([torch.tensor(tokenizer.encode(_read([f])) + end).int() for f in files])
        for files in (train, validation)
    )
    return Tokens(next(encoded), next(encoded), len(tokenizer))


def _bytes(text: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())


def _read(files: Iterable[Path]) -> str:
    texts = []
    for file in files:
        try:
            texts.append(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file} cannot be read as text: {error}") from error
    return "\n".join(texts)
