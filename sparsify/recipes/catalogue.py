"""Recipes: named pipelines, as text and nothing else.

Steps and rates suit models of a few million parameters; for billions take lr=0.0002 and more steps.
"""

from sparsify.errors import PipelineError
from sparsify.plugins import RECIPES as OFFERED
from sparsify.plugins import plugins
from sparsify.recipes import mixtures, one_shot, recovered, retrieval, structured, trained
from sparsify.recipes.recipe import Recipe
from sparsify.text.catalogue import unknown_name
from sparsify.text.syntax import Call, parse_calls

RECIPES = tuple(
    item
    for part in (structured, recovered, one_shot, trained, mixtures, retrieval)
    for item in part.RECIPES
)


def recipes() -> tuple[Recipe, ...]:
    """Every recipe, those of other packages last; PipelineError for a name that is there twice."""
    every = (*RECIPES, *plugins(OFFERED))
    names = [item.name for item in every]
    for name in names:
        if names.count(name) > 1:
            raise PipelineError(f"two recipes are called '{name}'; remove one of the packages")
    return every


def recipe(text: str) -> Recipe:
    """The recipe of a name, with the options that it needs, as in `sheared{layers=4 ...}`.

    Raises PipelineError for a name that is not there, OptionError for an option that is not, or is missing.
    """
    name, braced, _ = text.partition("{")
    found = template(name)
    call, *others = parse_calls(text) if braced else [Call(name)]
    if others:
        raise PipelineError(f"'{text}' is more than one recipe; give it as a pipeline")
    given = {key: ",".join(value.name for value in call.options[key]) for key in call.options}
    return found.filled(given)


def template(name: str) -> Recipe:
    """The recipe of a name, its options as in the example; PipelineError gives the nearest name."""
    known = {item.name: item for item in recipes()}
    if name not in known:
        raise unknown_name("recipe", name, known)
    return known[name]
