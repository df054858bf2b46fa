"""CIFAR, ImageNet folders and shards: small files in the true formats."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.training import data
from benchmarks.training.__main__ import main
from benchmarks.training.build import build
from benchmarks.training.loop import train
from benchmarks.training.processes import Processes
from benchmarks.training.recipe import Recipe, cells
from benchmarks.training.task import Batch, DataError, Source

from .small import ALONE, VIT

datasets: Any = pytest.importorskip(
    "torchvision.datasets", reason="torchvision is not installed", exc_type=ImportError
)
SMALL = {**VIT, "model": "digits-vit", "epochs": 1, "warmup_epochs": 0, "steps_per_epoch": None}
SMALL |= {"model_args": {**VIT["model_args"], "patch_size": 8}, "batch_size": 4, "workers": 0}


def recipe(folder: Path, dataset: str, **changes: Any) -> Recipe:
    (one,) = cells({**SMALL, "dataset": dataset, "data_dir": str(folder), **changes})
    return one


def write_cifar(folder: Path, classes: int, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """CIFAR's own files with ten pictures each; torchvision is told their checksums."""
    kind = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
    base = folder / kind.base_folder
    base.mkdir(parents=True)
    chance = np.random.default_rng(0)
    pictures = chance.integers(0, 256, (60, 3072), dtype=np.uint8)
    labels = "labels" if classes == 10 else "fine_labels"

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (base / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    def batch(name: str, number: int) -> list[str]:
        part = pictures[number * 10 : number * 10 + 10]
        return write(name, {"data": part, labels: [i % classes for i in range(10)]})

    names = [name for name, _ in kind.train_list]
    monkeypatch.setattr(kind, "train_list", [batch(name, i) for i, name in enumerate(names)])
    monkeypatch.setattr(kind, "test_list", [batch(kind.test_list[0][0], 5)])
    key = kind.meta["key"]
    meta, checksum = write(kind.meta["filename"], {key: [str(i) for i in range(classes)]})
    monkeypatch.setattr(kind, "meta", {"filename": meta, "key": key, "md5": checksum})
    return pictures


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar(tmp_path: Path, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = write_cifar(tmp_path, classes, monkeypatch)
    one = recipe(tmp_path, f"cifar{classes}", batch_size=5, tensorboard=False)
    images, train_on, test_on = data.load(one, ALONE)
    assert images == (3, 32, classes)
    (first, labels), _ = test_on.batches(0)
    mean, deviation = (torch.tensor(x)[:, None, None] for x in data.STATISTICS[one.dataset])
    expected = torch.tensor(pictures[50].reshape(3, 32, 32)) / 255
    torch.testing.assert_close(first[0], (expected - mean) / deviation)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert train_on.steps == (10 if classes == 10 else 2)
    (epoch,) = train(build(one, ALONE), one, ALONE)
    assert 0 < epoch.loss < 10


def test_broken_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, 10, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"cifar10 in data_dir .* is missing or broken"):
        data.load(recipe(tmp_path, "cifar10"), ALONE)


def jpeg(chance: np.random.Generator) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    picture = chance.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(picture).save(stream, "JPEG")
    return stream.getvalue()


def write_folders(folder: Path) -> None:
    chance = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3)):
        for name in ("n01440764", "n01443537", "n01484850"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                (folder / split / name / f"{name}_{number}.JPEG").write_bytes(jpeg(chance))


def test_imagenet(tmp_path: Path) -> None:
    write_folders(tmp_path)
    one = recipe(tmp_path, "imagenet", image_size=32, batch_size=4, workers=2)
    images, train_on, test_on = data.load(one, ALONE)
    assert images == (3, 32, 3)
    assert train_on.steps == 3
    assert sum(len(labels) for _, labels in test_on.batches(0)) == 9
    (epoch,) = train(build(one, ALONE), one, ALONE)
    assert 0 < epoch.loss < 10
    assert data.load(recipe(tmp_path, "imagenet"), ALONE)[0].size == 224


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_broken_picture_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    """In one line, though a worker meets it."""
    write_folders(tmp_path / "data")
    broken = tmp_path / "data" / "val" / "n01440764" / "n01440764_0.JPEG"
    broken.write_bytes(b"junk")
    arguments = ["run", str(tmp_path / "study"), "--dataset", "imagenet", "--model", "digits-vit"]
    arguments += ["--data-dir", str(tmp_path / "data"), "--workers", workers, "--epochs", "1"]
    arguments += ["--model-args", "{patch_size: 8, width: 16, hidden: 16, depth: 1, heads: 2}"]
    arguments += ["--image-size", "32", "--batch-size", "4", "--warmup-epochs", "0"]
    assert main(arguments) == 1
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "cannot be read" in x]
    assert line.startswith(str(broken))


def test_chance_does_not_depend_on_workers_or_on_the_past(tmp_path: Path) -> None:
    write_folders(tmp_path)
    want = {"image_size": 32, "batch_size": 4}
    sources = [
        data.load(recipe(tmp_path, "imagenet", **want, workers=workers), ALONE)[1]
        for workers in (0, 2)
    ]
    first, second = ([tuple(batch) for batch in source.batches(1)] for source in sources)
    same(first, second)
    same(first[2:], list(sources[0].batches(1, 2)))
    other = next(iter(sources[0].batches(2)))
    assert not torch.equal(other[0], first[0][0])


def same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_broken_picture(tmp_path: Path) -> None:
    write_folders(tmp_path)
    broken = tmp_path / "val" / "n01443537" / "n01443537_1.JPEG"
    broken.write_bytes(broken.read_bytes()[:100])
    _, _, test_on = data.load(recipe(tmp_path, "imagenet", image_size=32), ALONE)
    with pytest.raises(DataError, match=r"n01443537_1\.JPEG cannot be read"):
        list(test_on.batches(0))


def test_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train is no folder of one folder of pictures"):
        data.load(recipe(tmp_path, "imagenet"), ALONE)
    write_folders(tmp_path)
    (tmp_path / "val" / "n01484850").rename(tmp_path / "val" / "n9")
    with pytest.raises(DataError, match="val has other classes"):
        data.load(recipe(tmp_path, "imagenet"), ALONE)


def write_shards(
    folder: Path, *, of: int = 4, samples: int = 6, more_classes_in: str = "none"
) -> None:
    pytest.importorskip("webdataset")
    chance = np.random.default_rng(0)
    for split in ("train", "val"):
        for shard in range(of):
            with tarfile.open(folder / f"{split}-{shard:04d}.tar", "w") as tar:
                for number in range(samples):
                    key = f"{shard:02d}{number:04d}"
                    label = str((shard + number) % 3 + (split == more_classes_in)).encode()
                    for suffix, content in (("jpg", jpeg(chance)), ("cls", label)):
                        info = tarfile.TarInfo(f"{key}.{suffix}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))


def test_shards_with_other_classes(tmp_path: Path) -> None:
    write_shards(tmp_path, more_classes_in="val")
    with pytest.raises(DataError, match=r"val-\*.tar have 4 classes, .*train-\*.tar have 3"):
        data.load(recipe(tmp_path, "imagenet-shards", image_size=32, batch_size=4), ALONE)


def test_shards(tmp_path: Path) -> None:
    write_shards(tmp_path)
    one = recipe(tmp_path, "imagenet-shards", image_size=32, batch_size=4, workers=2)
    images, train_on, test_on = data.load(one, ALONE)
    assert images == (3, 32, 3)
    assert train_on.steps == 6
    assert sum(len(labels) for _, labels in test_on.batches(0)) == 24
    assert json.loads((tmp_path / "train.json").read_text())["samples"] == 24
    (epoch,) = train(build(one, ALONE), one, ALONE)
    assert 0 < epoch.loss < 10


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_go_on_in_the_middle_of_an_epoch(tmp_path: Path, workers: int) -> None:
    write_shards(tmp_path)
    change = {"image_size": 32, "batch_size": 4, "accumulation": 2, "workers": workers}
    _, train_on, _ = data.load(recipe(tmp_path, "imagenet-shards", **change), ALONE)
    whole = list(train_on.batches(3))
    assert len(whole) == 12
    same(list(train_on.batches(3, 3)), whole[6:])
    other = next(iter(train_on.batches(4)))
    assert not torch.equal(other[0], whole[0][0])


def test_shards_of_two_processes_differ(tmp_path: Path) -> None:
    write_shards(tmp_path)
    one = recipe(tmp_path, "imagenet-shards", image_size=32, batch_size=4)

    class Both(Processes):
        def of_first(self, value: Any) -> Any:
            return value or {"samples": 24, "classes": 3}

    sources: list[Source] = [
        data.load(one, Both(torch.device("cpu"), rank, 2))[2] for rank in (0, 1)
    ]
    labels = [sum(len(batch[1]) for batch in islice(source.batches(0), 99)) for source in sources]
    assert labels == [12, 12]


def test_broken_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no train-\*\.tar"):
        data.load(recipe(tmp_path, "imagenet-shards"), ALONE)
    write_shards(tmp_path, of=2)
    with pytest.raises(ValueError, match="workers is 4, so that 4 read"):
        data.load(recipe(tmp_path, "imagenet-shards", workers=4, batch_size=4), ALONE)
    shard = tmp_path / "train-0001.tar"
    shard.write_bytes(b"broken")
    (tmp_path / "train.json").unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"train-0001\.tar cannot be read as a shard"):
        data.load(recipe(tmp_path, "imagenet-shards", batch_size=4), ALONE)
