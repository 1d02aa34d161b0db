"""Named pipelines, as text and nothing else; what other packages import."""

from sparsify.recipes.catalogue import RECIPES as RECIPES
from sparsify.recipes.catalogue import recipe as recipe
from sparsify.recipes.catalogue import recipes as recipes
from sparsify.recipes.recipe import Recipe as Recipe
