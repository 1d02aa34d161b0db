"""Probes: where the statistics of an activation are kept."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from sparsify.ir.ops.probe import probe as probe_op
from sparsify.ir.ops.probe import probe_experts, probe_routes
from sparsify.ir.ops.rounding import quantize_activations
from sparsify.ir.program import Program

aten = torch.ops.aten


@dataclass(frozen=True)
class Probe:
    """A probe on an activation `x [..., features]`; `statistics` are the paths of its buffers.

    With `scores [tokens, experts]` it watches a router, and x are the numbers `[tokens, k]` that it chose.
    With `of_experts` every expert has statistics of its own, over the rows of x that are its: those up to its
    entry of `ends`, `x[expert]` where that is None. `tokens` are the numbers of the tokens of all rows.
    """

    node: fx.Node
    x: fx.Node
    statistics: tuple[str, ...]
    scores: fx.Node | None = None
    of_experts: bool = False
    ends: fx.Node | None = None
    tokens: fx.Node | None = None


def probes(program: Program) -> Iterator[Probe]:
    """Every probe of the program, in graph order."""
    for node in program.graph.nodes:
        if (view := probe_at(node)) is not None:
            yield view


def probe_at(node: fx.Node) -> Probe | None:
    """The probe at a node, if it is one."""
    if node.op != "call_function":
        return None
    if node.target is probe_experts:
        x, ends, tokens, *reads = node.args
        paths = tuple(str(read.target) for read in reads if isinstance(read, fx.Node))
        return Probe(node, x, paths, of_experts=True, ends=ends, tokens=tokens)  # type: ignore[arg-type]
    if node.target not in (probe_op, probe_routes):
        return None
    x, *rest = node.all_input_nodes
    scores = rest.pop(0) if node.target is probe_routes else None
    return Probe(node, x, tuple(str(read.target) for read in rest), scores)


def probe_behind(x: fx.Node) -> Probe | None:
    """The probe that watches an activation; a quantizer or group mask inserted after it is passed over."""
    for target in (quantize_activations, aten.mul.Tensor):
        first = x.args[0] if x.op == "call_function" and x.target is target else None
        x = first if isinstance(first, fx.Node) else x
    return probe_at(x)
