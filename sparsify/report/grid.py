"""Where each weight stands in a model, read off its path: which stack of layers, which layer, which kind."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from sparsify.describe.facts import Weight, kind


@dataclass
class Stack:
    """Layers that are numbered under one name, `model.layers`.

    `cells` holds the weights of a layer and a kind; a kind is what follows the number of the layer, with
    `*` for any further number, so that experts that are kept one by one share a cell.
    """

    name: str
    layers: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    cells: dict[tuple[int, str], list[Weight]] = field(default_factory=dict)


def stacks(weights: Iterable[Weight]) -> tuple[list[Stack], list[Weight]]:
    """The stacks of a model, in the order of its weights, and the weights that stand in none.

    Kinds come in the order in which weights that are left name them first, layers by number.
    """
    found: dict[str, Stack] = {}
    outside = []
    for weight in sorted(weights, key=lambda item: not item.shape):
        parts = weight.path.removesuffix(".weight").split(".")
        number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        if number is None:
            outside.append(weight)
            continue
        name = ".".join(parts[:number])
        stack = found.setdefault(name, Stack(name))
        layer, rest = int(parts[number]), ".".join(parts[number + 1 :])
        stack.cells.setdefault((layer, kind(rest)), []).append(weight)
    for stack in found.values():
        stack.layers = sorted({layer for layer, _ in stack.cells})
        stack.kinds = list(dict.fromkeys(name for _, name in stack.cells))
    return list(found.values()), outside


def grouped(kinds: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Neighbours among kinds that share all but their last word, under what they share."""
    groups: list[tuple[str, list[str]]] = []
    for name in kinds:
        group, _, leaf = name.rpartition(".")
        if not groups or groups[-1][0] != group:
            groups.append((group, []))
        groups[-1][1].append(leaf)
    return groups
