"""Preference pairs: SHP, HH, and pairs made of the standard library's source code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .recipe import Recipe
from .task import DataError
from .text import standard_library

HUB = {"shp": "stanfordnlp/SHP", "hh": "Anthropic/hh-rlhf"}
TURN = "\n\nAssistant:"
MADE = {"train": 4096, "validation": 512}


def load(recipe: Recipe) -> tuple[Any, Any]:
    """Two datasets of ``prompt``, ``chosen`` and ``rejected``: to train on, to validate on.

    SHP and HH come from the files in data_dir, JSON lines as they are published, or from the hub.

    Raises:
        DataError: they are not there, or broken, or of another schema.
    """
    if recipe.dataset == "stdlib-pairs":
        train, validation = (made(split, recipe.context) for split in MADE)
    else:
        pair = {"shp": shp_pair, "hh": hh_pair}[recipe.dataset]
        raw = _raw(recipe)
        train, validation = (_pairs(raw, split, pair, recipe) for split in ("train", "validation"))
    if recipe.pairs is not None:
        train = train.select(range(min(recipe.pairs, len(train))))
    return train, validation


def shp_pair(row: dict[str, Any]) -> dict[str, str]:
    """A question, and of two answers the one that more people liked."""
    answers = row["human_ref_A"], row["human_ref_B"]
    chosen, rejected = answers if row["labels"] == 1 else answers[::-1]
    return {
        "prompt": f"\n\nHuman: {row['history']}{TURN}",
        "chosen": f" {chosen}",
        "rejected": f" {rejected}",
    }


def hh_pair(row: dict[str, Any]) -> dict[str, str]:
    """Two dialogues that are the same up to the last answer."""
    chosen, rejected = row["chosen"], row["rejected"]
    start = chosen.rindex(TURN) + len(TURN)
    return {
        "prompt": chosen[:start],
        "chosen": chosen[start:],
        "rejected": rejected[rejected.rindex(TURN) + len(TURN) :],
    }


def made(split: str, context: int) -> Any:
    """A piece of source code, chosen: how it goes on; rejected: what stands elsewhere.

    The same pairs for every seed.
    """
    from datasets import Dataset

    tokens = standard_library()
    text = tokens.train if split == "train" else tokens.validation
    half = (context - 1) // 2  # an end of text follows
    chance = torch.Generator().manual_seed(0)
    starts = torch.randint(len(text) - 2 * half, (2, MADE[split]), generator=chance).tolist()

    def piece(start: int) -> str:
        return bytes(text[start : start + half].tolist()).decode("latin-1")

    return Dataset.from_list(
        [
            {"prompt": piece(here), "chosen": piece(here + half), "rejected": piece(elsewhere)}
            for here, elsewhere in zip(*starts, strict=True)
        ]
    )


def _raw(recipe: Recipe) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    try:
        if recipe.data_dir is None:
            raw = load_dataset(HUB[recipe.dataset])
            raw.setdefault("validation", raw.get("test"))
            return raw
        folder = Path(recipe.data_dir)
        files = {split: _files(folder, split) for split in ("train", "validation", "test")}
        files["validation"] = files["validation"] or files.pop("test")
        if not files["train"] or not files["validation"]:
            raise DataError(
                f"data_dir {recipe.data_dir!r} must hold train*.json* and validation*.json* or "
                "test*.json*, at any depth"
            )
        files.pop("test", None)
        return load_dataset("json", data_files=files)
    except (DatasetGenerationError, DatasetNotFoundError, OSError, ValueError) as error:
        raise DataError(f"{recipe.dataset} cannot be read: {error.__cause__ or error}") from error


def _files(folder: Path, split: str) -> list[str]:
    return sorted(str(file) for file in folder.rglob(f"{split}*.json*"))


def _pairs(raw: Any, split: str, pair: Any, recipe: Recipe) -> Any:
    columns = raw[split].column_names
    try:
        return raw[split].map(pair, remove_columns=columns)
    except (AttributeError, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{recipe.dataset}'s {split} part is of another schema than published ({error!r}); its "
            f"columns are {', '.join(columns)}"
        ) from error
