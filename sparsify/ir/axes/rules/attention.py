"""Where attention happens when it is written out: scores, softmax, product with the values."""

from collections.abc import Iterator

import torch
from torch import fx

from sparsify.ir.axes.analysis import Analysis, Attention
from sparsify.ir.axes.axis import Axis, product
from sparsify.ir.axes.rules.elementwise import ELEMENTWISE, overloads

_MOVES = frozenset(
    overloads(
        """view.default reshape.default unsqueeze.default expand.default transpose.int
        permute.default contiguous.default clone.default to.dtype repeat_interleave.self_int
        slice.Tensor cat.default flatten.using_ints unflatten.int squeeze.dim"""
    )
)
# What may stand between scores, softmax and the product with the values: batch and heads in one too.
_PASSED = frozenset(overloads("slice.Tensor view.default reshape.default"))
_PRODUCTS = frozenset(overloads("matmul.default bmm.default baddbmm.default"))


def repeated(analysis: Analysis, node: fx.Node) -> Iterator[Axis]:
    """The axes that were repeated on the way to a node through ops that only move elements."""
    seen = {node}
    queue = [node]
    while queue:
        here = queue.pop()
        if here.op == "call_function" and here.target in _MOVES:
            yield from analysis.made.get(here, [])
            sources = [s for s in here.all_input_nodes if s in analysis.axes and s not in seen]
            seen.update(sources)
            queue += sources


def softmax_site(analysis: Analysis, node: fx.Node, weights: fx.Node, values: fx.Node) -> None:
    """Record an attention when the left operand of a product comes out of a softmax."""
    source = _through_elementwise(weights, analysis.softmaxes)
    if source is None or min(len(analysis.axes[weights]), len(analysis.axes[values])) < 3:
        return
    scores = _scores(source)
    made = list(repeated(analysis, values))
    key_size = None
    if scores is not None:
        keys = scores.all_input_nodes[-1]
        made += list(repeated(analysis, keys))
        if len(analysis.axes[keys]) > 1:
            key_size = analysis.axes[keys][-2]
    left, right = analysis.axes[weights], analysis.axes[values]
    heads = _heads(left[-3]), _heads(right[-3])
    analysis.sites.append(Attention(node, *heads, key_size, right[-1], tuple(made)))


def _heads(axis: Axis) -> Axis:
    """The heads of a dimension that holds the batch before them, as for a batched product."""
    fixed = [factor for factor in axis.factors() if not factor.moves()]
    return product(fixed) if fixed else axis


def _through_elementwise(node: fx.Node, wanted: set[fx.Node]) -> fx.Node | None:
    """The nearest wanted node upstream, elementwise ops, slices and views on first operands passed over."""
    while node not in wanted:
        if not _is_passed(node):
            return None
        node = node.all_input_nodes[0]
    return node


def _scores(softmax: fx.Node) -> fx.Node | None:
    """The product of queries and keys that a softmax runs over."""
    node = softmax.all_input_nodes[0]
    for _ in range(16):
        if isinstance(node.target, torch._ops.OpOverload) and node.target in _PRODUCTS:
            return node
        if not _is_passed(node):
            return None
        node = node.all_input_nodes[0]
    return None


def _is_passed(node: fx.Node) -> bool:
    return (node.target in ELEMENTWISE or node.target in _PASSED) and bool(node.all_input_nodes)
