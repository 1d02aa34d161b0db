"""Parts that are written one after the other into an empty tensor, and fill it, become their concatenation.

slice_scatter(slice_scatter(empty, a, dim, 0, 16), b, dim, 16, 24)  ->  cat([a, b], dim)
"""

from typing import Any

import torch
from torch import fx

from sparsify.ir.trace.replaced import replaced

aten = torch.ops.aten
_WRITE = aten.slice_scatter.default
# Where a part begins, where it ends, and the part.
_Part = tuple[int, int, fx.Node]


def as_joins(module: fx.GraphModule) -> None:
    """Rewrite every run of such writes whose parts are of fixed length and do not overlap."""
    for node in reversed(list(module.graph.nodes)):
        if node.target is _WRITE:
            parts = _parts(node)
            if parts is not None:
                replaced(node, aten.cat.default, ([part for _, _, part in parts], _dim(node)))


def _dim(node: fx.Node) -> int:
    given: Any = node.args[2] if len(node.args) > 2 else 0
    return int(given) % int(node.meta["val"].dim())


def _parts(node: fx.Node) -> list[_Part] | None:
    """The parts that together are the whole of a dimension, in order; None where they are not."""
    dim, whole = _dim(node), node.meta["val"].shape[_dim(node)]
    found: list[_Part] = []
    here: Any = node
    while isinstance(whole, int) and isinstance(here, fx.Node) and here.target is _WRITE:
        part = _part(here, whole)
        if part is None or _dim(here) != dim:
            return None
        found = sorted([*found, part], key=lambda one: one[0])
        if sum(end - start for start, end, _ in found) >= whole:
            ends = [0, *(end for _, end, _ in found)]
            fits = [start for start, _, _ in found] == ends[:-1] and ends[-1] == whole
            return found if fits else None
        here = here.args[0]
    return None


def _part(node: fx.Node, whole: int) -> _Part | None:
    given: list[Any] = [*node.args, *(0, None, None, 1)[len(node.args) - 2 :]]
    _, part, _, start, end, step = given
    start, end = 0 if start is None else start, whole if end is None else end
    if not isinstance(start, int) or not isinstance(end, int) or step != 1:
        return None
    if not isinstance(part, fx.Node) or part.meta["val"].dtype != node.meta["val"].dtype:
        return None
    return _within(start, whole), _within(end, whole), part


def _within(bound: int, whole: int) -> int:
    return min(whole, bound + whole if bound < 0 else bound)
