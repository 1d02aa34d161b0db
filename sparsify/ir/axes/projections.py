"""Attention's linears, read off the axes: those that make queries, keys and values, and what reads heads."""

from collections.abc import Callable, Iterable

from torch import fx

from sparsify.ir.axes.analysis import Analysis, Attention
from sparsify.ir.axes.axis import Axis
from sparsify.ir.axes.walk import analyse
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import feature_of
from sparsify.ir.views.linear import Linear, linears


def projections(program: Program) -> list[tuple[Linear, ...]]:
    """The linears around every attention, in graph order: once a weight, of the model's own alone.

    They are the nearest ones before it that make an axis of its heads, and the nearest one behind it that
    contracts such an axis. An attention without any is left out, and so is one whose linears are those of
    another.
    """
    analysis = analyse(program)
    known = {path for path, _ in program.tensors()}
    own = {v.node: v for v in linears(program) if feature_of(v.weight, known) is None}
    places = {node: place for place, node in enumerate(program.graph.nodes)}
    found: dict[tuple[str, ...], list[Linear]] = {}
    for site in analysis.sites:
        stops = {*own, *(other.node for other in analysis.sites)} - {site.node}
        inner = _inner(site)
        before = _nearest(site.node, lambda node: node.all_input_nodes, stops)
        behind = _nearest(site.node, lambda node: node.users, stops)
        makers = [n for n in before if n in own and inner & _features(analysis, n)]
        readers = [n for n in behind if n in own and inner & _features(analysis, own[n].x)]
        views: dict[str, Linear] = {}
        for node in sorted({*makers, *readers}, key=places.__getitem__):
            views.setdefault(own[node].weight, own[node])
        found.setdefault(tuple(views), list(views.values()))
    return [tuple(views) for views in found.values() if views]


def _inner(site: Attention) -> set[Axis]:
    """The axes of heads, and of the features in one."""
    axes = [site.query_heads, site.key_heads, site.value_size]
    axes += [] if site.key_size is None else [site.key_size]
    return {leaf for axis in axes for leaf in axis.leaves() if leaf.size > 1 and not leaf.dynamic}


def _features(analysis: Analysis, node: fx.Node) -> set[Axis]:
    return set(analysis.axes[node][-1].leaves()) if analysis.axes.get(node) else set()


def _nearest(
    start: fx.Node, onward: Callable[[fx.Node], Iterable[fx.Node]], stops: set[fx.Node]
) -> set[fx.Node]:
    """The first of some nodes on every way from a node."""
    queue, seen, found = [start], {start}, set[fx.Node]()
    while queue:
        for node in onward(queue.pop()):
            if node not in seen:
                seen.add(node)
                (found.add if node in stops else queue.append)(node)
    return found
