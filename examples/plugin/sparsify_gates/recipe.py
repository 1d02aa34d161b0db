"""The recipe `gated`."""

from sparsify.recipes import Recipe

GATED = Recipe(
    "gated",
    "gates on what every linear takes in, trained with the weights and folded away",
    "insert-gates | train{steps=40 batch=8 lr=0.001} | fold-gates",
)
