"""Passes, exporters and recipes of other packages: found by their entry points, named where they fail."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from sparsify.errors import PipelineError, reason_of

PASSES, EXPORTERS, RECIPES = "sparsify.passes", "sparsify.exporters", "sparsify.recipes"


@cache
def plugins(group: str) -> tuple[Any, ...]:
    """What other packages offer under an entry point group, in the order of their names.

    Importing them registers their features and ops as well. Raises PipelineError naming the package that
    cannot be imported.
    """
    found = sorted(entry_points(group=group), key=lambda point: (point.name, point.value))
    return tuple(_load(point) for point in found)


def offered(group: str) -> bool:
    """Whether another package offers anything under an entry point group; imports nothing."""
    return bool(entry_points(group=group))


def load_plugins() -> None:
    """Import every package that offers something, so that saved programs may hold its features and ops."""
    for group in (PASSES, EXPORTERS, RECIPES):
        plugins(group)


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:  # a package of somebody else raises what it likes
        owner = point.dist.name if point.dist is not None else point.value
        raise PipelineError(
            f"the package '{owner}' offers '{point.name}' in {point.group}, but '{point.value}' cannot be "
            f"imported ({reason_of(error)}); mend or remove the package"
        ) from error
