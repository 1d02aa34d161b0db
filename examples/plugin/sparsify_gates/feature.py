"""The feature `gates`: where gates are, how one is added, taken out, and carried into the decode variant."""

from dataclasses import dataclass

import torch
from torch import fx

from sparsify import Feature, Program, register_feature
from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.views.linear import Linear, feature_size, linears
from sparsify_gates.op import gate


@dataclass(frozen=True)
class Gate:
    """A gate: `node` is `gate(x, g)`, `path` that of `g [features]`, after the weight of a linear."""

    node: fx.Node
    x: fx.Node
    path: str


def gate_path(weight: str) -> str:
    """The path of the gate of the linear that owns a weight."""
    return f"{weight}_gate"


def gates(program: Program) -> list[Gate]:
    """Every gate of a program, in graph order."""
    found = program.graph.find_nodes(op="call_function", target=gate)
    return [Gate(node, node.args[0], str(node.args[1].target)) for node in found]


def add_gate(program: Program, view: Linear) -> None:
    """Gate what a linear takes in; ones at first."""
    weight = program.tensor(view.weight)
    ones = torch.ones(feature_size(view.x), dtype=weight.dtype, device=weight.device)
    writer = Writer(program, before=view.node)
    gated = writer.call(gate, view.x, writer.parameter(gate_path(view.weight), ones))
    view.node.replace_input_with(view.x, gated)


def drop_gate(program: Program, found: Gate) -> None:
    """Let the linear read its input as it is."""
    redirect(found.node, found.x)
    sweep(program)


def carry_gates(made: Program, program: Program) -> None:
    """Gate every linear of the decode variant that is gated in the program; tensors follow by their paths."""
    for view in linears(made):
        if program.has(gate_path(view.weight)):
            add_gate(made, view)


register_feature(Feature("gates", ("_gate",), gates, drop_gate, carry_gates))
