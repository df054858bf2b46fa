"""Every knob, once: as a dataclass, as command line arguments and as YAML."""

# ruff: noqa: RUF009  # knob() is a dataclasses.field

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import yaml

from . import activations
from .files import write_atomically

SHIPPED = Path(__file__).parent / "recipes"
VISION = ("digits", "cifar10", "cifar100", "imagenet", "imagenet-shards")
LANGUAGE = ("stdlib", "text")
PREFERENCES = ("stdlib-pairs", "shp", "hh")
OWN_DATA = ("imagenet", "imagenet-shards", "text")
"""Whose content is what lies in data_dir."""
DATASETS = (*VISION, *LANGUAGE, *PREFERENCES)
AXES = ("model", "dataset", "activation", "seed")
"""Of these a study takes several values: each combination is a cell."""


def knob(
    default: Any,
    help: str,
    *,
    allowed: str = "",
    check: Callable[[Any], bool] | None = None,
    choices: tuple[str, ...] = (),
    identity: bool = True,
) -> Any:
    """A field. ``allowed`` says in words what ``check`` tests; a knob that cannot change the
    results, such as where the data lie, is not part of a cell's identity."""
    if choices:
        allowed, check = ", ".join(choices), choices.__contains__
    metadata = {"help": help, "allowed": allowed, "check": check, "identity": identity}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def at_least(lowest: float) -> dict[str, Any]:
    return {"allowed": f"{lowest} and more", "check": lambda x: math.isfinite(x) and x >= lowest}


POSITIVE: dict[str, Any] = {
    "allowed": "numbers above 0",
    "check": lambda x: math.isfinite(x) and x > 0,
}
SHARE: dict[str, Any] = {"allowed": "0 to below 1", "check": lambda x: 0 <= x < 1}


@dataclass(frozen=True)
class Recipe:
    """One cell. The defaults are the recipe of the authors' public logs; what a dataset has other
    than that is in recipes/<dataset>.yaml."""

    model: str = knob("vit_tiny_patch16_224", "digits-vit, small-gpt, gpt2, or any name in timm")
    dataset: str = knob("digits", "what to learn", choices=DATASETS)
    activation: str = knob("crrelu", "an activation, such as gelu, or with a start, crrelu:-0.3")
    seed: int = knob(42, "decides the initial weights and all chance", **at_least(0))

    data_dir: str | None = knob(None, "where the dataset lies", identity=False)
    download: bool = knob(False, "fetch CIFAR into data_dir if it is not there", identity=False)
    image_size: int | None = knob(None, "of the images; null: the dataset's own", **at_least(1))
    model_args: dict[str, Any] = knob({}, "more arguments of the model, '{patch_size: 4}'")
    drop_path: float | None = knob(
        None, "share of residual branches dropped; null: 0.1 for ViT-Tiny, as published, else 0",
        **SHARE,
    )  # fmt: skip
    teacher: str | None = knob(None, "a timm model that a distilled DeiT learns from as well")
    teacher_weights: str | None = knob(None, "its weights, a file; null: timm's pretrained ones")
    tokenizer: str = knob("bytes", "of text: bytes, or a name or folder of transformers")
    context: int = knob(1024, "tokens that a language model sees", **at_least(2))
    weights: str | None = knob(
        None, "a file of weights to start from; {activation} and {seed} are filled in as in the "
        "names of folders, * matches",
    )  # fmt: skip

    epochs: int = knob(300, "passes over the data", **at_least(1))
    steps_per_epoch: int | None = knob(None, "cuts an epoch short; null: all data", **at_least(1))
    batch_size: int = knob(256, "samples in a step, over all processes", **at_least(1))
    accumulation: int = knob(1, "parts that a process computes its batch in", **at_least(1))
    learning_rate: float = knob(2.5e-4, "the highest", **POSITIVE)
    warmup_epochs: float = knob(20.0, "in which the rate rises, in a line", **at_least(0))
    warmup_rate: float = knob(1e-6, "learning rate at the start", **at_least(0))
    final_rate: float = knob(1e-5, "learning rate at the end of the cosine", **at_least(0))
    weight_decay: float = knob(0.05, "AdamW's; of matrices alone", **at_least(0))
    beta1: float = knob(0.9, "AdamW's", **SHARE)
    beta2: float = knob(0.999, "AdamW's", **SHARE)
    clip: float | None = knob(1.0, "largest norm of the gradient; null: any", **POSITIVE)
    amp: str = knob(
        "auto",
        "precision; auto: bfloat16 on a GPU, none elsewhere",
        choices=("auto", "none", "bfloat16", "float16"),
    )
    compile: bool = knob(False, "torch.compile the model")

    eafo_every: int = knob(100, "of dynamic EAFO: steps between updates", **at_least(1))
    eafo_warmup: int = knob(100, "of dynamic EAFO: steps that find the input", **at_least(4))
    eafo_trust: float = knob(
        0.01, "of dynamic EAFO: largest change by the first update, in scales; later ones make "
        "less, the last step of training none", **POSITIVE,
    )  # fmt: skip

    dpo_beta: float = knob(0.1, "DPO's temperature", **POSITIVE)
    pairs: int | None = knob(None, "preference pairs at most; null: all", **at_least(2))

    device: str = knob("auto", "cpu or cuda", choices=("auto", "cpu", "cuda"), identity=False)
    parallel: str = knob(
        "ddp", "how several processes share a model", choices=("ddp", "fsdp2"), identity=False
    )
    workers: int = knob(0, "processes that load data, for each process", **at_least(0),
                        identity=False)  # fmt: skip
    checkpoint_every: int = knob(500, "steps between checkpoints", **at_least(1), identity=False)
    tensorboard: bool = knob(True, "write TensorBoard logs, if it is installed", identity=False)

    def __post_init__(self) -> None:
        for one in fields(self):
            value, check = getattr(self, one.name), one.metadata["check"]
            if value is not None and check and not check(value):
                raise ValueError(f"{one.name} is {value!r}; allowed are {one.metadata['allowed']}")
        if self.dynamic and (self.dataset in PREFERENCES) != (self.weights is not None):
            raise ValueError(
                f"weights is {self.weights!r}; with activation {self.activation!r} allowed are: in "
                "DPO a file, since its functions stay as they were learned; elsewhere null, since "
                "they begin anew"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}; allowed are 0 to below epochs, "
                f"which is {self.epochs}"
            )
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation is {self.accumulation}; allowed are divisors of batch_size, "
                f"which is {self.batch_size}"
            )

    @property
    def dynamic(self) -> bool:
        return activations.parse(self.activation).dynamic

    @property
    def setting(self) -> str:
        """Names everything but the activation, with its own knobs, and the seed: what is equal in a
        comparison."""
        own = ("activation", "seed", *EAFO)
        return _digest({k: v for k, v in self._identity() if k not in own})

    @property
    def variant(self) -> str:
        """The activation, and its own knobs where they are other than the dataset's."""
        usual = shipped(self.dataset)
        own = {name: getattr(self, name) for name in EAFO if self.dynamic}
        others = [f"{name} {value}" for name, value in own.items() if value != usual[name]]
        return ", ".join([self.activation, *others])

    @property
    def cell(self) -> str:
        """Names everything that decides the result; is the name of a folder too."""
        readable = "-".join((self.dataset, self.model, self.activation, f"seed{self.seed}"))
        return f"{in_names(readable)}-{_digest(dict(self._identity()))}"

    def _identity(self) -> Iterable[tuple[str, Any]]:
        for one in fields(self):
            if one.metadata["identity"] and (self.dynamic or one.name not in EAFO):
                yield one.name, getattr(self, one.name)


KNOBS: dict[str, Field[Any]] = {one.name: one for one in fields(Recipe)}
EAFO = tuple(name for name in KNOBS if name.startswith("eafo_"))
"""Of dynamic activations alone."""
READ_BY: dict[str, Callable[[Recipe], bool]] = {
    "image_size": lambda one: one.dataset in VISION and one.dataset != "digits",
    "drop_path": lambda one: one.dataset in VISION and one.model != "digits-vit",
    "teacher": lambda one: one.dataset in VISION,
    "teacher_weights": lambda one: one.dataset in VISION and one.teacher is not None,
    "tokenizer": lambda one: one.dataset == "text",
    "context": lambda one: one.dataset not in VISION,
    "dpo_beta": lambda one: one.dataset in PREFERENCES,
    "pairs": lambda one: one.dataset in PREFERENCES,
}
"""The knobs that some trainings do not read; in these they stand as the dataset has them."""
_TYPES = get_type_hints(Recipe)


@functools.cache
def shipped(dataset: str) -> dict[str, Any]:
    """The knobs' values of a dataset where no others are given: its own, else the published."""
    own = read(SHIPPED / f"{dataset}.yaml")
    return {
        name: convert(name, own[name]) if name in own else one.default
        for name, one in KNOBS.items()
    }


def cells(request: Mapping[str, Any]) -> list[Recipe]:
    """All combinations of the axes' values that are lists; what is not given takes its default.

    The defaults are those of the dataset, then the published ones. Seeds vary slowest, so that a
    study that is cut short has whole rows.

    Raises:
        ValueError: a knob is unknown, or its value not allowed.
    """
    if unknown := [name for name in request if name not in KNOBS]:
        raise ValueError(f"{unknown[0]!r} is no knob; allowed are {', '.join(KNOBS)}")
    datasets = _several(request.get("dataset", KNOBS["dataset"].default))
    found = []
    for dataset in datasets:
        if dataset not in DATASETS:
            raise ValueError(f"dataset is {dataset!r}; allowed are {', '.join(DATASETS)}")
        values = {**read(SHIPPED / f"{dataset}.yaml"), **request, "dataset": dataset}
        axes = [_several(values.get(axis, KNOBS[axis].default)) for axis in AXES]
        for combination in product(*axes):
            chosen = {**values, **dict(zip(AXES, combination, strict=True))}
            found.append(Recipe(**{name: convert(name, value) for name, value in chosen.items()}))
    for name, read_by in READ_BY.items():
        if not any(map(read_by, found)):
            for one in found:
                if name in request and getattr(one, name) != (usual := shipped(one.dataset)[name]):
                    raise ValueError(
                        f"{name} is {getattr(one, name)!r}; allowed is {usual!r}, since a training "
                        f"of {one.model} on {one.dataset} does not read it"
                    )
        found = [
            one if read_by(one) else replace(one, **{name: shipped(one.dataset)[name]})
            for one in found
        ]
    if not found:
        empty = next(axis for axis in AXES if request.get(axis) == [])
        raise ValueError(f"{empty} is []; allowed are one value and more")
    once = {recipe.cell: recipe for recipe in found}
    return sorted(once.values(), key=lambda recipe: recipe.seed)


def convert(name: str, value: Any) -> Any:
    """A knob's value as YAML gives it, in the knob's type: there 1e-3 is a string.

    Raises:
        ValueError: it is of another type.
    """
    given = _TYPES[name]
    types = get_args(given) if isinstance(given, UnionType) else (given,)
    kinds = [t if isinstance(t, type) else dict for t in types]
    if type(value) in kinds:
        return value
    if float in kinds and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if str in kinds and isinstance(value, int | float):
        return str(value)
    names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
    raise ValueError(f"{name} is {value!r}; allowed are values of type {names}")


def read(file: Path) -> dict[str, Any]:
    """A recipe file: a mapping of knobs to values, of the axes to lists of values too.

    Raises:
        ValueError: it cannot be read, or is something else.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read as YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; allowed is a mapping of knobs")
    return content


def write(request: Mapping[str, Any], folder: Path) -> None:
    """What was asked for, with all defaults, as a file that --config takes, in ``folder``."""
    recipes = cells(request)
    for dataset in dict.fromkeys(recipe.dataset for recipe in recipes):
        same = [recipe for recipe in recipes if recipe.dataset == dataset]
        content: dict[str, Any] = asdict(same[0])
        for name, read_by in READ_BY.items():
            content[name] = getattr(next(filter(read_by, same), same[0]), name)
        for axis in AXES:
            content[axis] = list(dict.fromkeys(getattr(recipe, axis) for recipe in same))
        text = yaml.safe_dump(content, sort_keys=False)
        write_atomically(folder / f"recipe-{dataset}-{_digest(content)}.yaml", text.encode())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """An argument for each knob, read as YAML is; absent unless given."""
    for name, one in KNOBS.items():
        default = {} if one.default is MISSING else one.default
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            nargs="+" if name in AXES else None,
            type=_value,
            default=argparse.SUPPRESS,
            metavar="X",
            help=f"{one.metadata['help']} (published default: {default})".replace("%", "%%"),
        )


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(text) from error


def in_names(text: str) -> str:
    """Text as the names of files and folders have it."""
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in text)


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
