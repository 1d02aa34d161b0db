"""Tables that the code computes from counting alone, as the slopes of ALiBi, become buffers.

pow(base, arange(1, heads + 1))  ->  a buffer [heads]

What is counted along is pinned, since the numbers are those of its entries; the entries of a buffer are a
tensor's like any other, and go with what they belong to. Whole numbers stay computed: they are places.
"""

from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
_COUNTS = frozenset({aten.arange.default, aten.arange.start, aten.arange.start_step})
_MOST = 1 << 16  # entries of a table that are worth keeping
_NAME = "table"


def as_buffers(module: fx.GraphModule) -> None:
    """Compute the floating-point tables of a graph that follow from counting and nothing else."""
    values: dict[fx.Node, Any] = {}
    counted: set[fx.Node] = set()
    for node in module.graph.nodes:
        if not _is_constant(node, values):
            continue
        given, options = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
        values[node] = node.target(*given, **options)
        if node.target in _COUNTS or not counted.isdisjoint(node.all_input_nodes):
            counted.add(node)
    for node in counted:
        value = values[node]
        is_table = isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1
        if is_table and any(user not in values for user in node.users):
            _store(module, node, value)


def _is_constant(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    """Whether a node computes a table of no great size from numbers that stand in the graph."""
    if node.op != "call_function" or any(source not in values for source in node.all_input_nodes):
        return False
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or any(not isinstance(n, int) for n in value.shape):
        return False
    tags = getattr(node.target, "tags", ())
    random = torch.Tag.nondeterministic_seeded in tags
    return isinstance(node.target, torch._ops.OpOverload) and not random and value.numel() <= _MOST


def _store(module: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    number = sum(name.startswith(_NAME) for name, _ in module.named_buffers())
    path = f"{_NAME}_{number}"
    module.register_buffer(path, value.clone())
    with module.graph.inserting_before(node):
        read = module.graph.get_attr(path)
    read.meta = dict(node.meta)
    node.replace_all_uses_with(read)
