"""Ops on each logit alone that stand behind the linear which makes them: a scale, a soft cap, a cast."""

from torch import fx

from sparsify.ir.axes.rules.elementwise import overloads

_ALONE = frozenset(
    overloads(
        "mul.Tensor mul.Scalar div.Tensor div.Scalar add.Tensor add.Scalar sub.Tensor sub.Scalar "
        "neg.default tanh.default clamp.default to.dtype _to_copy.default alias.default clone.default"
    )
)


def before_tail(node: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """The node that such ops begin from, and these ops in order; the node itself where there are none."""
    tail = list[fx.Node]()
    while len(node.users) == 1 and node.target in _ALONE and _is_unary(node):
        tail.append(node)
        (node,) = node.all_input_nodes
    return node, tuple(reversed(tail))


def _is_unary(node: fx.Node) -> bool:
    """Whether the only value among the arguments of an op is its first."""
    first = node.args[0] if node.args else None
    return isinstance(first, fx.Node) and node.all_input_nodes == [first]
