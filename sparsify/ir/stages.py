"""A program cut into stages, so that it can run piece by piece over many batches.

A cut lies before the first linear that reads an activation: what the linear will read is known there and
none of its weights has been used. The values that cross a cut are all that has to be kept of a batch.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.packed import PackedProduct
from sparsify.ir.program import Program
from sparsify.ir.views import Linear

# The first member of a list of modules that a node's code lies in: `decoder.block.3`.
_MEMBER = re.compile(r"^(.*?\.\d+)(?:\.|$)")
Values = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """What runs up to a cut, and the linears that read `x` behind it.

    `carried` are the values that cross the cut, by name; `reads` the tensors that `nodes` read; `layer`
    the member of a list of modules that the linears belong to, empty outside any.
    """

    nodes: tuple[fx.Node, ...]
    x: fx.Node
    linears: tuple[Linear, ...]
    carried: frozenset[str]
    reads: tuple[str, ...]
    layer: str


def layer_of(node: fx.Node) -> str:
    """The member of a list of modules whose code made a node (`model.layers.3`), empty for none."""
    found = _MEMBER.match(node.meta.get("module", ""))
    return found[1] if found else ""


def stages(program: Program, views: Sequence[Linear]) -> list[Stage]:
    """The stages of a program for these linears, in order; what runs after the last is left out."""
    nodes = [n for n in program.graph.nodes if n.op not in ("get_attr", "output")]
    place = {node: i for i, node in enumerate(nodes)}
    last = {n: max((place.get(user, len(nodes)) for user in n.users), default=-1) for n in nodes}
    readers: dict[fx.Node, list[Linear]] = {}
    for view in sorted(views, key=lambda view: place[view.node]):
        readers.setdefault(view.x, []).append(view)
    found, start = [], 0
    for x, read_by in readers.items():
        cut = place[read_by[0].node]
        part = tuple(nodes[start:cut])
        carried = frozenset(n.name for n in nodes[:cut] if last[n] >= cut)
        layer = layer_of(read_by[0].node)
        found.append(Stage(part, x, tuple(read_by), carried, _reads(part), layer))
        start = cut
    return found


def features_across(stage: Stage) -> int:
    """How many features a token cross the cut of a stage, masks and tables left out."""
    values = [node.meta["val"] for node in stage.x.graph.nodes if node.name in stage.carried]
    return sum(int(v.shape[-1]) for v in values if isinstance(v, Tensor) and v.dim() == 3)


def run_stage(
    program: Program,
    stage: Stage,
    values: Mapping[str, Any],
    device: torch.device,
    packed: Mapping[fx.Node, PackedProduct] = MappingProxyType({}),
) -> Values:
    """Run the nodes of a stage on the values that crossed the cut before; those that cross its own.

    For the first stage `values` are the program's inputs by name. Values and tensors that lie elsewhere
    are copied to `device`. Linears whose nodes are in `packed` are computed from those bytes.
    """
    known: Values = {name: _to(value, device) for name, value in values.items()}
    uses = {node: len(node.users) for node in stage.nodes}

    def read(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return _value(program, argument, known, device)
        return device if isinstance(argument, torch.device) else argument

    with torch.no_grad():
        for node in stage.nodes:
            if node.op == "placeholder":
                known[node.name] = known[str(node.target)]
                continue
            if node in packed:
                known[node.name] = packed[node](read)
            else:
                args, kwargs = fx.node.map_aggregate((node.args, dict(node.kwargs)), read)
                assert callable(node.target)
                known[node.name] = node.target(*args, **kwargs)
            for source in node.all_input_nodes:
                if source in uses:
                    uses[source] -= 1
                    if uses[source] == 0:
                        known.pop(source.name, None)
    return {name: known[name] for name in stage.carried}


def _value(program: Program, node: fx.Node, known: Mapping[str, Any], device: torch.device) -> Any:
    if node.op == "get_attr":
        return _to(program.tensor(str(node.target)), device)
    return known[node.name]


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _reads(nodes: Sequence[fx.Node]) -> tuple[str, ...]:
    paths = {
        str(s.target): None for node in nodes for s in node.all_input_nodes if s.op == "get_attr"
    }
    return tuple(paths)
