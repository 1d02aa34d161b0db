"""A program cut into stages, so that it can run piece by piece over many batches.

A cut lies before the first linear that reads an activation: what the linear will read is known there and
none of its weights has been used. The values that cross a cut are all that has to be kept of a batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.axes.residual import blocks, flow_of
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.packed_nm import PackedProduct
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear
from sparsify.ir.views.stacks import tokens_of

Values = dict[str, Any]


@dataclass(frozen=True)
class Layer:
    """A residual layer: its nodes, what a human calls it, and the paths of the tensors that it reads."""

    name: str
    nodes: frozenset[fx.Node]
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """What runs up to a cut, and the linears that read `x` behind it.

    `carried` are the values that cross the cut, by name; `reads` the tensors that `nodes` read; `layer`
    the residual layer that the linears lie in, None outside any. Where they are matrices of experts, `ends`
    says which rows of x are whose, and `tokens` which tokens' they are, as `tokens_of` finds it.
    """

    nodes: tuple[fx.Node, ...]
    x: fx.Node
    linears: tuple[Linear, ...]
    carried: frozenset[str]
    reads: tuple[str, ...]
    layer: Layer | None
    tokens: fx.Node | None = None

    @property
    def ends(self) -> fx.Node | None:
        """Where the rows of each expert end."""
        return self.linears[0].ends


def layers(program: Program) -> list[Layer]:
    """The residual layers of a program whose nodes are typed, in graph order."""
    analysis = analyse(program)
    flow, found = flow_of(analysis), []
    for number, block in enumerate(blocks(analysis, "layers")):
        nodes = [n for n in program.graph.nodes if flow.between(block.x, block.y, n)]
        paths: dict[str, None] = {}
        for node in nodes:
            paths.update(dict.fromkeys(_read_by(node, analysis.constant)))
        name = _shared_name(block.weights) or f"layer {number}"
        found.append(Layer(name, frozenset(nodes), tuple(paths)))
    return found


def stages(program: Program, views: Sequence[Linear]) -> list[Stage]:
    """The stages of a program for these linears, in order; what runs after the last is left out."""
    nodes, begins = _late_constants(program)
    place = {node: i for i, node in enumerate(nodes)}
    last = {n: max((place.get(user, len(nodes)) for user in n.users), default=-1) for n in nodes}
    readers: dict[tuple[fx.Node, bool], list[Linear]] = {}
    for view in sorted(views, key=lambda view: place[view.node]):
        readers.setdefault((view.x, view.stacked), []).append(view)
    numbers = {key: tokens_of(program, read_by[0]) for key, read_by in readers.items()}
    for key, node in numbers.items():
        if node is not None:  # it crosses the cut, whoever else reads it
            last[node] = max(last[node], place[readers[key][0].node])
    found: list[Stage] = []
    start, known = 0, layers(program)
    for (x, stacked), read_by in readers.items():
        cut = begins[read_by[0].node]
        part = tuple(nodes[start:cut])
        carried = frozenset(n.name for n in nodes[:cut] if last[n] >= cut)
        layer = next((layer for layer in known if read_by[0].node in layer.nodes), None)
        tokens = numbers[x, stacked]
        found.append(Stage(part, x, tuple(read_by), carried, _reads(part), layer, tokens))
        start = cut
    return _filled(found)


def _late_constants(program: Program) -> tuple[list[fx.Node], dict[fx.Node, int]]:
    """The nodes in an order in which they can run, and where in it each begins with what it alone wants.

    What follows from tensors of the program alone, as a weight that is turned, stands right before the first
    node that wants it: of a weight that is pruned behind a cut nothing may cross it.
    """
    constant: set[fx.Node] = set()
    ordered: dict[fx.Node, None] = {}
    begins = {}

    def emit(node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source in constant and source not in ordered:
                emit(source)
        ordered[node] = None

    for node in program.graph.nodes:
        if node.op in ("get_attr", "output"):
            continue
        sources = node.all_input_nodes
        if sources and all(s.op == "get_attr" or s in constant for s in sources):
            constant.add(node)
        else:
            begins[node] = len(ordered)
            emit(node)
    return list(ordered), begins


def _filled(found: list[Stage]) -> list[Stage]:
    """Stages between two of one layer belong to it: what reads another stream there (an encoder's)."""
    last = {stage.layer: number for number, stage in enumerate(found)}
    layer, filled = None, []
    for number, stage in enumerate(found):
        if stage.layer is not None:
            layer = stage.layer
        inside = stage.layer is None and layer is not None and number < last[layer]
        filled.append(replace(stage, layer=layer) if inside else stage)
    return filled


def _read_by(node: fx.Node, constant: set[fx.Node]) -> Iterator[str]:
    """The paths of the tensors that a node reads, itself or through what is computed from them alone."""
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            yield str(source.target)
        elif source in constant:
            yield from _read_by(source, constant)


def _shared_name(paths: Sequence[str]) -> str:
    """What all paths begin with, in whole names."""
    shared: list[str] = []
    for parts in zip(*(path.split(".")[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


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
                    if uses[source] == 0 and source.name not in stage.carried:
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
