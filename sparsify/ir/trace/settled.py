"""Choices that are no choices: a mask that follows from a group of one is the same whatever the input.

    topk(x [..., 1], 1) -> 0;  scatter(zeros [..., 1], -1, 0, 1) -> 1;  masked_fill(y, ~1, -inf) -> y

Routers choose groups of experts before experts; most models of today have one group.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
_FILLS: dict[Any, int] = {
    aten.zeros_like.default: 0,
    aten.zeros.default: 0,
    aten.new_zeros.default: 0,
    aten.ones_like.default: 1,
    aten.ones.default: 1,
    aten.new_ones.default: 1,
}
_MOVES = {
    aten.view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.clone.default,
    aten.contiguous.default,
}
_CASTS = {aten.to.dtype, aten._to_copy.default}
_NOTS = {aten.bitwise_not.default, aten.logical_not.default}


def drop_settled(module: fx.GraphModule) -> None:
    """Let what a settled mask would choose be read without it."""
    values: dict[fx.Node, int] = {}
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        found = _value(node, values)
        if found is not None:
            values[node] = found
        chosen = _chosen(node, values)
        if chosen is not None and _alike(chosen.meta["val"], node.meta["val"]):
            node.replace_all_uses_with(chosen)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _value(node: fx.Node, values: dict[fx.Node, int]) -> int | None:
    """What all entries of a node are, whatever the input; None where that is not known."""
    args: Any = node.args
    source: Any = args[0] if args else None
    if node.target in _FILLS:
        return _FILLS[node.target]
    if node.target is operator.getitem and source.target is aten.topk.default:
        return 0 if args[1] == 1 and _of_one(source.args[0], *source.args[2:3]) else None
    if node.target is aten.scatter.value:
        _, dim, index, value = args
        all_of_it = index.meta["val"].shape == node.meta["val"].shape and _of_one(node, dim)
        return int(value) if values.get(index) == 0 and all_of_it and value in (0, 1) else None
    if not isinstance(source, fx.Node) or source not in values:
        return None
    if node.target not in _MOVES | _CASTS | _NOTS:
        return None
    is_bool = node.meta["val"].dtype == torch.bool
    if node.target in _NOTS:
        return int(not values[source]) if is_bool else None
    return int(bool(values[source])) if is_bool else values[source]


def _of_one(node: fx.Node, dim: int = -1) -> bool:
    """Whether a dimension has one entry."""
    sizes = node.meta["val"].shape
    return len(sizes) > 0 and isinstance(sizes[dim], int) and sizes[dim] == 1


def _chosen(node: fx.Node, values: dict[fx.Node, int]) -> fx.Node | None:
    """What a node gives where its mask is settled."""
    args: Any = node.args
    if node.target is aten.masked_fill.Scalar and values.get(args[1]) == 0:
        found: fx.Node = args[0]
        return found
    if node.target is aten.where.self and args[0] in values:
        found = args[1 if values[args[0]] else 2]
        return found
    return None
