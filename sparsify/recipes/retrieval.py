"""Recipes for models that look up what they do not hold."""

from sparsify.recipes.recipe import Recipe

RECIPES = (
    Recipe(
        "neighbours",
        "a store of what followed in the data, asked by what enters the head, its share chosen on rows apart",
        "insert-neighbours | choose-neighbours",
    ),
)
