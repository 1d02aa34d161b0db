"""Probes: where the statistics of an activation are kept."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from sparsify.ir.ops.probe import probe as probe_op
from sparsify.ir.ops.rounding import quantize_activations
from sparsify.ir.program import Program

aten = torch.ops.aten


@dataclass(frozen=True)
class Probe:
    """A probe on an activation `x [..., features]`; `statistics` are the paths of its buffers."""

    node: fx.Node
    x: fx.Node
    statistics: tuple[str, ...]


def probes(program: Program) -> Iterator[Probe]:
    """Every probe of the program, in graph order."""
    for node in program.graph.nodes:
        if (view := probe_at(node)) is not None:
            yield view


def probe_at(node: fx.Node) -> Probe | None:
    """The probe at a node, if it is one."""
    if node.op != "call_function" or node.target is not probe_op:
        return None
    x, *statistics = node.args
    assert isinstance(x, fx.Node)
    return Probe(node, x, tuple(str(s.target) for s in statistics if isinstance(s, fx.Node)))


def probe_behind(x: fx.Node) -> Probe | None:
    """The probe that watches an activation; a quantizer or group mask inserted after it is passed over."""
    for target in (quantize_activations, aten.mul.Tensor):
        first = x.args[0] if x.op == "call_function" and x.target is target else None
        x = first if isinstance(first, fx.Node) else x
    return probe_at(x)
