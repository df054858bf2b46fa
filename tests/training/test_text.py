"""Text, cut into pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.training.task import DataError
from benchmarks.training.text import Pieces, load, standard_library

from .small import ALONE, GPT, recipe

TEXT = {"dataset": "text", "tokenizer": "bytes", "warmup_epochs": 0, "accumulation": 1}


def pieces(of: Pieces, epoch: int) -> Tensor:
    (found,) = of.__getitems__([(epoch, index) for index in range(len(of))])
    return found


def test_each_epoch_cuts_the_text_elsewhere() -> None:
    text, offsets = torch.arange(1005), set()
    of = Pieces(text, 100, seed=0)
    for epoch in range(8):
        found = pieces(of, epoch)
        offset = int(found[0, 0])
        assert offset < 100
        assert torch.equal(found.flatten(), text[offset : offset + 900])
        assert torch.equal(pieces(of, epoch), found)
        offsets.add(offset)
    assert len(offsets) > 4


def test_all_of_the_text_is_for_validation() -> None:
    text = torch.arange(1005)
    assert torch.equal(pieces(Pieces(text, 100, None), 0).flatten(), text[:1000])


def test_a_context_that_is_too_long() -> None:
    Pieces(torch.arange(200), 100, 0)
    with pytest.raises(ValueError, match="context is 100; allowed are up to 99, half of the text"):
        Pieces(torch.arange(199), 100, 0)


def test_validation_text_is_not_trained_on() -> None:
    tokens = standard_library()
    train, validation = (bytes(part.tolist()) for part in (tokens.train, tokens.validation))
    for start in range(0, len(validation) - 500, 50_000):
        assert validation[start : start + 500] not in train


def folder(of: Path, train: list[bytes], validation: list[bytes]) -> Path:
    for split, texts in (("train", train), ("validation", validation)):
        (of / split / "deeper").mkdir(parents=True)
        for number, text in enumerate(texts):
            (of / split / "deeper" / f"{number}.txt").write_bytes(text)
    return of


def test_a_folder_of_texts(tmp_path: Path) -> None:
    """Files in order, a line's end between them."""
    where = folder(tmp_path, ["ä".encode() * 50, b"b" * 300], [b"c" * 200])
    one = recipe(GPT, **TEXT, data_dir=str(where), batch_size=2, steps_per_epoch=None)
    vocabulary, train, validation = load(one, ALONE)
    assert vocabulary == 256
    assert train.steps == 2
    (batch,) = next(iter(validation.batches(0)))
    assert (batch == ord("c")).all()
    joined = "ä".encode() * 50 + b"\n" + b"b" * 300
    for (batch,) in train.batches(0, 0):
        assert all(bytes(row.tolist()) in joined for row in batch)


def test_bad_folders(tmp_path: Path) -> None:
    def load_from(where: Path | None) -> None:
        given = None if where is None else str(where)
        load(recipe(GPT, **TEXT, data_dir=given), ALONE)

    with pytest.raises(DataError, match=r"must hold train/\*.txt and .* there are 1 and 0"):
        load_from(folder(tmp_path / "half", [b"text"], []))
    with pytest.raises(DataError, match=r"0\.txt cannot be read as text"):
        load_from(folder(tmp_path / "latin", [b"\xe4" * 999], [b"text" * 99]))
    with pytest.raises(ValueError, match="data_dir is missing"):
        load_from(None)
