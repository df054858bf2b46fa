"""From a recipe to a task."""

from __future__ import annotations

from glob import glob
from pickle import UnpicklingError

import torch
from torch import nn

from . import activations, data, language, text, vision
from .processes import Processes
from .recipe import VISION, Recipe
from .task import Task


def build(recipe: Recipe, processes: Processes) -> Task:
    """The model, whose weights the seed decides whatever the activation, and its data.

    Raises:
        DataError: the dataset is not there or broken.
        ValueError: the recipe asks for what there is not.
    """
    activation = activations.parse(recipe.activation)
    if recipe.dataset in VISION:
        images, train, validation = data.load(recipe, processes)
        torch.manual_seed(recipe.seed)
        model = vision.build(recipe, activation, images)
        loss = vision.objective(recipe, model, images)
        start_from(recipe, model)
        return Task(model, train, validation, loss, vision.measure, "images")
    vocabulary, train, validation = text.load(recipe, processes)
    torch.manual_seed(recipe.seed)
    model = language.build(recipe, activation, vocabulary)
    start_from(recipe, model)
    return Task(
        model, train, validation, language.predict, language.measure, "tokens", recipe.context
    )


def start_from(recipe: Recipe, model: nn.Module) -> None:
    """Loads the recipe's weights, if it names any.

    Raises:
        ValueError: there is no such file, or several, or it is another model's.
    """
    if recipe.weights is None:
        return
    pattern = recipe.weights.format(activation=recipe.activation, seed=recipe.seed)
    files = glob(pattern)
    if len(files) != 1:
        raise ValueError(
            f"weights is {recipe.weights!r}; allowed is what names one file: {pattern} names "
            f"{len(files)}"
        )
    try:
        model.load_state_dict(torch.load(files[0], map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, UnpicklingError) as error:
        raise ValueError(f"weights is {recipe.weights!r}: {files[0]}: {error}") from error
