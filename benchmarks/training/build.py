"""From a recipe to a task."""

from __future__ import annotations

from glob import glob

import torch
from torch import nn

from . import activations, checkpoint, data, language, text, vision
from .processes import Processes
from .recipe import VISION, Recipe, in_names
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
    try:
        activation = in_names(recipe.activation)
        pattern = recipe.weights.format(activation=activation, seed=recipe.seed)
    except (AttributeError, LookupError, ValueError) as error:
        raise ValueError(
            f"weights is {recipe.weights!r}; allowed in braces are activation and seed"
        ) from error
    files = glob(pattern)
    if len(files) != 1:
        raise ValueError(
            f"weights is {recipe.weights!r}; allowed is what names one file: {pattern} names "
            f"{len(files)}"
        )
    checkpoint.load_weights(files[0], model, f"weights is {recipe.weights!r}")
