"""A graph as JSON values and back: data, not code, so that loading a file never runs what it says."""

import importlib
import math
import operator
from typing import Any

import torch
from torch import fx

from sparsify.errors import DataError
from sparsify.ir.ops import OPS
from sparsify.ir.verify import allowed

# What is kept of a node's metadata: the module that made it, and attention's dropout probability as
# traced, which evaluation mode sets to zero in the arguments.
_META = ("module", "dropout_p")
_OWN = {function: name for name, function in OPS.items()}
_TORCH = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
_MODULES = {"operator": operator, "math": math, "torch": torch}


def graph_to_json(graph: fx.Graph) -> list[dict[str, Any]]:
    """One entry a node: op, name, target, arguments; nodes in arguments are `{"node": index}`."""
    index = {node: i for i, node in enumerate(graph.nodes)}
    return [
        {
            "op": node.op,
            "name": node.name,
            "target": _target_name(node.target),
            "args": [_encode(a, index) for a in node.args],
            "kwargs": {key: _encode(value, index) for key, value in node.kwargs.items()},
            **{key: node.meta[key] for key in _META if node.meta.get(key) is not None},
        }
        for node in graph.nodes
    ]


def graph_from_json(entries: list[dict[str, Any]]) -> fx.Graph:
    """The graph of `graph_to_json`.

    Raises DataError for an entry that is no node of a program, a function outside the allowed set
    among them.
    """
    graph = fx.Graph()
    nodes: list[fx.Node] = []
    for entry in entries:
        try:
            args = tuple(_decode(a, nodes) for a in entry["args"])
            kwargs = {key: _decode(value, nodes) for key, value in entry["kwargs"].items()}
            op, target = entry["op"], entry["target"]
            if op == "call_function":
                target = _target(target)
            elif op not in ("placeholder", "get_attr", "output"):
                raise DataError(f"a stored node has the unknown kind '{op}'")
            node = graph.create_node(op, target, args, kwargs, name=entry["name"])
            node.meta.update({key: entry[key] for key in _META if key in entry})
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise DataError(f"node {len(nodes)} of the stored graph is damaged: {error}") from error
        nodes.append(node)
    return graph


def _target_name(target: Any) -> str:
    if isinstance(target, str):
        return target
    if target in _OWN:
        return _OWN[target]
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    module = {"_operator": "operator"}.get(target.__module__, target.__module__.split(".")[0])
    return f"{module}:{target.__name__}"


def _target(name: str) -> Any:
    """The function of a stored name; only ops that a program may hold."""
    if name in OPS:
        return OPS[name]
    if ":" in name:
        module, _, attribute = name.partition(":")
        target = getattr(_MODULES.get(module), attribute, None)
    else:
        namespace, _, rest = name.partition(".")
        if namespace == "transformers":
            importlib.import_module("transformers.integrations.moe")
        packet, _, overload = rest.rpartition(".")
        try:
            target = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
        except (AttributeError, RuntimeError) as error:
            raise DataError(f"the stored graph calls '{name}', which this torch lacks") from error
    if target is None or not allowed(target):
        raise DataError(f"the stored graph calls '{name}', which is not an op of a program")
    return target


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
    if word in _TORCH and isinstance(getattr(torch, inner), _TORCH[word]):
        return getattr(torch, inner)
    raise DataError(f"the stored graph holds an unknown value '{word}'")
