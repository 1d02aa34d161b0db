"""Lengths that views compute from a fixed number, as `batch * heads`, become `-1`: what is left over.

view(x, [batch * 4, length, 16])  ->  view(x, [-1, length, 16])
view(x, [batch * 4, -1, 16])      ->  view(x, [-1, size of x, 16])

Then no number of the axes that are merged or split stands outside of the view itself.
"""

import operator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten.reshape.default)
_REST = -1


def as_rest(module: fx.GraphModule) -> None:
    """Rewrite the views of a graph that have such a length, where each of the others is known."""
    for node in list(module.graph.nodes):
        if node.target not in _VIEWS:
            continue
        given: Any = node.args[1]
        sizes = list(given)
        computed = next((place for place, size in enumerate(sizes) if _is_computed(size)), None)
        if computed is None:
            continue
        if _REST in sizes:
            place = sizes.index(_REST)
            known = _known(module.graph, node, place)
            if known is None:
                continue
            sizes[place] = known
        sizes[computed] = _REST
        node.update_arg(1, sizes)


def _is_computed(size: Any) -> bool:
    """Whether a length is a varying one times or by a number."""
    if not isinstance(size, fx.Node) or size.target not in (operator.mul, operator.floordiv):
        return False
    return any(isinstance(factor, int) and factor > 1 for factor in size.args)


def _known(graph: fx.Graph, node: fx.Node, place: int) -> Any:
    """The length that stands at a place of a view: a number, or a dimension of what it views."""
    wanted, source = node.meta["val"].shape[place], node.all_input_nodes[0]
    if isinstance(wanted, int):
        return wanted
    for dim, size in enumerate(source.meta["val"].shape):
        if isinstance(size, torch.SymInt) and size.node.expr == wanted.node.expr:
            with graph.inserting_before(node):
                known = graph.call_function(aten.sym_size.int, (source, dim))
            known.meta["val"] = size
            return known
    return None
