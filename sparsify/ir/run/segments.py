"""A program run piece by piece in training: activations computed again, parameters whole, a piece at a time.

A cut lies where a single activation crosses it: the residual stream between two blocks. What depends on no
parameter, as masks and tables of positions do, is small and crosses as it is.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from sparsify.ir.graph import sources

aten = torch.ops.aten
# What costs most to compute again and little to keep: products with weights, and attention.
_COSTLY = (
    "mm addmm bmm baddbmm _grouped_mm _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
    "_scaled_dot_product_cudnn_attention"
)
# Weight matrices that a piece reads at least: fewer are not worth a value kept at its border.
_MATRICES = 2


@dataclass(frozen=True)
class _Call:
    """One node, with the arguments it had when the pass began: the mode may change before the backward.

    `frees` names the values that nobody reads after it.
    """

    name: str
    target: Any
    args: Any
    kwargs: Any
    frees: tuple[str, ...]


@dataclass(frozen=True)
class Segment:
    """Calls in order, the names of the values they read from before and those that are read after.

    `tensors` are the paths of those of the program that they read.
    """

    calls: tuple[_Call, ...]
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    tensors: tuple[str, ...]


class Units(Protocol):
    """Where parameters are that are whole only while a piece runs."""

    def tensor(self, path: str) -> Any:
        """The tensor at a path, None for one that is where it always is."""

    def call(self, piece: Segment, run: Callable[..., Any], values: Sequence[Any]) -> Any:
        """What `run` gives for the values a piece reads, its parameters whole meanwhile."""


def segments(
    module: fx.GraphModule, *, wanted: Sequence[fx.Node] | None = None, whole: bool = False
) -> list[Segment]:
    """The pieces of a graph, the last of which holds what lies behind the last cut.

    With `wanted` only what these values need; with `whole` all of it in one piece.
    """
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    place = {node: i for i, node in enumerate(nodes)}
    last = {n: max((place.get(u, len(nodes)) for u in n.users), default=-1) for n in nodes}
    read = last
    if wanted is not None:
        needed = sources(*wanted)
        nodes = [node for node in nodes if node in needed]
        place = {node: i for i, node in enumerate(nodes)}
        read = {n: max((place[u] for u in n.users if u in place), default=-1) for n in nodes}
        last = read | {node: len(nodes) for node in wanted if node in place}
    # What is only wanted at the end does not count as crossing: it is kept in any case.
    borders = [0, *([] if whole else _borders(module, nodes, read)), len(nodes)]
    return [
        _segment(nodes[start:end], {n for n in nodes[:end] if last[n] >= end})
        for start, end in itertools.pairwise(borders)
    ]


def run_segments(
    module: fx.GraphModule,
    inputs: Mapping[str, Tensor],
    *,
    wanted: Sequence[fx.Node] | None = None,
    every: int | None = 1,
    units: Units | None = None,
    **options: Any,
) -> tuple[Tensor, ...]:
    """The outputs of a module, every `every`-th piece of it but the last kept by its borders alone.

    With `wanted` the values of these nodes, and only what they need is run; with `every` None all is kept.
    `units` make parameters whole for each piece. `options` go to `torch.utils.checkpoint.checkpoint`.
    """
    known = _known(module, inputs)
    pieces = segments(module, wanted=wanted)
    for i, piece in enumerate(pieces):

        def run(*values: Any, piece: Segment = piece) -> tuple[Any, ...]:
            return _run(module, piece, dict(zip(piece.reads, values, strict=True)), units)

        called: Callable[..., Any] = run
        if every is not None and i + 1 < len(pieces) and i % every == 0:
            called = partial(checkpoint, run, use_reentrant=False, **options)
        values = [known[name] for name in piece.reads]
        given = called(*values) if units is None else units.call(piece, called, values)
        known.update(zip(piece.gives, given, strict=True))
    return _found(module, wanted, known)


def keeping_products() -> tuple[Any, Any]:
    """A `context_fn` of checkpoints: outputs of products and of attention are kept, others computed again.

    Source: Korthikanti et al. 2022 (2205.05198), selective activation recomputation.
    """
    packets = [getattr(aten, name) for name in _COSTLY.split() if hasattr(aten, name)]
    contexts: tuple[Any, Any] = create_selective_checkpoint_contexts(  # type: ignore[no-untyped-call]
        [packet.default for packet in packets]
    )
    return contexts


def run_to(
    module: fx.GraphModule, inputs: Mapping[str, Tensor], wanted: Sequence[fx.Node]
) -> tuple[Tensor, ...]:
    """The values of some nodes; only what they need is run, and each value is let go after its last use."""
    known = _known(module, inputs)
    (piece,) = segments(module, wanted=wanted, whole=True)
    values = {name: known[name] for name in piece.reads}
    known.update(zip(piece.gives, _run(module, piece, values), strict=True))
    return _found(module, wanted, known)


def _known(module: fx.GraphModule, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    return {n.name: inputs[str(n.target)] for n in module.graph.nodes if n.op == "placeholder"}


def _found(
    module: fx.GraphModule, wanted: Sequence[fx.Node] | None, known: Mapping[str, Any]
) -> tuple[Tensor, ...]:
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    asked: Any = output.args[0] if wanted is None else tuple(wanted)
    found: tuple[Tensor, ...] = fx.node.map_arg(asked, lambda node: _value(module, node, known))
    return found


def _borders(module: nn.Module, nodes: Sequence[fx.Node], last: Mapping[fx.Node, int]) -> list[int]:
    """Where a cut pays: a single activation crosses, and enough weights were read since the last one."""
    active: set[fx.Node] = set()
    crossing: set[fx.Node] = set()
    found, matrices = [], 0
    for i, node in enumerate(nodes):
        read = [_tensor(module, s) for s in node.all_input_nodes if s.op == "get_attr"]
        learned = [value for value in read if isinstance(value, nn.Parameter)]
        matrices += sum(value.dim() > 1 for value in learned)
        if learned or any(source in active for source in node.all_input_nodes):
            active.add(node)
            crossing.add(node)
        crossing = {n for n in crossing if last[n] > i}
        if len(crossing) == 1 and matrices >= _MATRICES and i + 1 < len(nodes):
            found.append(i + 1)
            matrices = 0
    return found


def _segment(nodes: Sequence[fx.Node], crossing: set[fx.Node]) -> Segment:
    inside = set(nodes)
    reads = {
        source.name: None
        for node in nodes
        for source in node.all_input_nodes
        if source not in inside and source.op != "get_attr"
    }
    gives = tuple(node.name for node in nodes if node in crossing)
    frees: dict[fx.Node, list[str]] = {node: [] for node in nodes}
    seen = set(gives)
    for node in reversed(nodes):
        for source in (node, *node.all_input_nodes):
            if source.op != "get_attr" and source.name not in seen:
                seen.add(source.name)
                frees[node].append(source.name)
    calls = tuple(_Call(n.name, n.target, n.args, dict(n.kwargs), tuple(frees[n])) for n in nodes)
    stored = [s for node in nodes for s in node.all_input_nodes if s.op == "get_attr"]
    tensors = tuple(dict.fromkeys(str(source.target) for source in stored))
    return Segment(calls, tuple(reads), gives, tensors)


def _run(
    module: nn.Module, piece: Segment, known: dict[str, Any], units: Units | None = None
) -> tuple[Any, ...]:
    def value(node: fx.Node) -> Any:
        held = None
        if units is not None and node.op == "get_attr":
            held = units.tensor(str(node.target))
        return _value(module, node, known) if held is None else held

    for call in piece.calls:
        args, kwargs = fx.node.map_arg((call.args, call.kwargs), value)
        known[call.name] = call.target(*args, **kwargs)
        for name in call.frees:
            del known[name]
    return tuple(known[name] for name in piece.gives)


def _value(module: nn.Module, node: fx.Node, known: Mapping[str, Any]) -> Any:
    # Read when it is used: sharded parameters are whole for the time of a pass only.
    return _tensor(module, node) if node.op == "get_attr" else known[node.name]


def _tensor(module: nn.Module, node: fx.Node) -> Any:
    owner, _, name = str(node.target).rpartition(".")
    return getattr(module.get_submodule(owner), name)
