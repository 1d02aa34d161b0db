"""A graph as JSON values and back: data, not code, so that loading a file never runs what it says."""

import math
from typing import Any

import torch
from torch import fx

from sparsify.errors import DataError
from sparsify.ir.ops.allowed import name_of, op_named

# What is kept of a node's metadata: the module that made it, and attention's dropout probability as
# traced, which evaluation mode sets to zero in the arguments.
_META = ("module", "dropout_p")
_TORCH = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def graph_to_json(graph: fx.Graph) -> list[dict[str, Any]]:
    """One entry a node: op, name, target, arguments; nodes in arguments are `{"node": index}`."""
    index = {node: i for i, node in enumerate(graph.nodes)}
    return [
        {
            "op": node.op,
            "name": node.name,
            "target": node.target if isinstance(node.target, str) else name_of(node.target),
            "args": [_encode(a, index) for a in node.args],
            "kwargs": {key: _encode(value, index) for key, value in node.kwargs.items()},
            **{key: node.meta[key] for key in _META if node.meta.get(key) is not None},
        }
        for node in graph.nodes
    ]


def graph_from_json(entries: list[dict[str, Any]]) -> fx.Graph:
    """The graph of `graph_to_json`, once `stored_graph.check_nodes` has taken its entries.

    Raises DataError for names that torch.fx would write otherwise.
    """
    graph = fx.Graph()
    nodes: list[fx.Node] = []
    for entry in entries:
        args = tuple(_decode(a, nodes) for a in entry["args"])
        kwargs = {key: _decode(value, nodes) for key, value in entry["kwargs"].items()}
        target = op_named(entry["target"]) if entry["op"] == "call_function" else entry["target"]
        node = graph.create_node(entry["op"], target, args, kwargs, name=entry["name"])
        if node.name != entry["name"]:
            raise DataError(f"the name '{entry['name']}' of a node means something in code")
        node.meta.update({key: entry[key] for key in _META if key in entry})
        nodes.append(node)
    return graph


def _encode(value: Any, index: dict[fx.Node, int]) -> Any:
    if isinstance(value, fx.Node):
        return {"node": index[value]}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, index) for item in value]}
    if isinstance(value, list):
        return [_encode(item, index) for item in value]
    if isinstance(value, slice):
        return {"slice": [_encode(v, index) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    for word, kind in _TORCH.items():
        if isinstance(value, kind):
            return {word: str(value).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a graph holds a {type(value).__name__}, which has no stored form")


def _decode(value: Any, nodes: list[fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((word, inner),) = value.items()
    if word == "node":
        return nodes[inner]
    if word == "tuple":
        return tuple(_decode(item, nodes) for item in inner)
    if word == "slice":
        return slice(*(_decode(item, nodes) for item in inner))
    if word == "device":
        return torch.device(inner)
    if word == "float":
        return float(inner)
    return getattr(torch, inner)
