"""One op of an exported graph in the place of another."""

from typing import Any

from torch import fx


def replaced(node: fx.Node, target: Any, arguments: tuple[Any, ...]) -> fx.Node:
    """The call of `target` that all readers of a node read now; it has the node's place, type and module."""
    with node.graph.inserting_before(node):
        new = node.graph.call_function(target, arguments)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
    return new
