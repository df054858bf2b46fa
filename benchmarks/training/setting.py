"""What the cells of a table have in common, and what not: knobs, parameters, machines."""

from __future__ import annotations

from collections.abc import Iterator

from .recipe import EAFO, KNOBS, Recipe
from .results import Result, facts
from .summary import between

_COMMON = tuple(
    name
    for name, one in KNOBS.items()
    if one.metadata["identity"] and name not in ("activation", "seed", *EAFO)
)


def headings(groups: list[list[Result]]) -> list[str]:
    """Of each setting model and dataset, and the knobs in which those with the same two differ."""
    recipes = [group[0].recipe for group in groups]
    found = []
    for own in recipes:
        alike = [one for one in recipes if (one.model, one.dataset) == (own.model, own.dataset)]
        differing = [
            f"{name} {getattr(own, name)}" for name in _COMMON if len(_values(name, alike)) > 1
        ]
        found.append(", ".join([f"{own.model} on {own.dataset}", *differing]))
    return found


def description(group: list[Result]) -> Iterator[str]:
    """The knobs that are other than published, the parameters, and what the cells ran on."""
    recipes = [result.recipe for result in group]
    dynamic = [recipe for recipe in recipes if recipe.dynamic]
    published = Recipe()
    shown = []
    for name in (*_COMMON, *EAFO):
        values = _values(name, dynamic if name in EAFO else recipes)
        if name in ("model", "dataset") or set(values) - {str(getattr(published, name))}:
            shown.append(f"{name} {' or '.join(values)}")
    parameters = between([result.parameters for result in group])
    yield f"Other than published: {', '.join(shown)}. {parameters} parameters."
    yield from _computed(group)
    yield ""


def _computed(group: list[Result]) -> Iterator[str]:
    cells: dict[str, dict[str, list[int]]] = {}
    for result in group:
        seeds = cells.setdefault(facts(result.environment), {})
        seeds.setdefault(result.recipe.variant, []).append(result.recipe.seed)
    if len(cells) == 1:
        yield f"Computed on: {', '.join(cells)}."
        return
    yield ""
    yield "**The cells were not computed on the same**, and may differ by that as well:"
    yield ""
    for where, by_variant in cells.items():
        names = "; ".join(
            f"{variant} seed {', '.join(map(str, sorted(seeds)))}"
            for variant, seeds in by_variant.items()
        )
        yield f"- {names}: {where}."


def _values(name: str, recipes: list[Recipe]) -> list[str]:
    """Of a knob, each once."""
    return list(dict.fromkeys(str(getattr(recipe, name)) for recipe in recipes))
