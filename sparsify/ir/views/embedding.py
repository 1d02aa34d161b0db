"""Tables: weights `[rows, width]` that ids pick rows of, and their rounding."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsify.ir.ops.rounding import quantize_weight
from sparsify.ir.program import Program
from sparsify.ir.views.composition import WeightQuantizer, composition_at
from sparsify.ir.views.linear import Linear, linears
from sparsify.ir.views.targets import is_head

aten = torch.ops.aten


@dataclass(frozen=True)
class Table:
    """One use of a weight as a table; `operand` is the node that enters, the weight or `Q(weight)`."""

    node: fx.Node
    ids: fx.Node
    weight: str
    operand: fx.Node
    quantizer: WeightQuantizer | None = None


def tables(program: Program) -> list[Table]:
    """Every table of the program, in graph order."""
    return [view for node in program.graph.nodes if (view := table_at(node)) is not None]


def table_at(node: fx.Node) -> Table | None:
    """The table that a node picks rows of; None for another op, or a weight that passes have composed."""
    if node.target is not aten.embedding.default:
        return None
    operand, ids = node.args[:2]
    assert isinstance(operand, fx.Node)
    assert isinstance(ids, fx.Node)
    found = composition_at(operand)
    if found is None or found.mask or found.branch or found.row_scales:
        return None
    return Table(node, ids, found.weight, operand, found.quantizer)


def output_heads(program: Program) -> list[Linear]:
    """The linears that make the outputs, or share their weight with a table."""
    return [view for view in linears(program) if is_head(program, view)]


def rounded_table(program: Program, table: Table) -> Tensor:
    """`Q(weight) [rows, width]` as the graph computes it, the weight where it is not rounded."""
    weight = program.tensor(table.weight).detach()
    if table.quantizer is None:
        return weight
    scales = program.tensor(table.quantizer.scales)
    rounded: Tensor = quantize_weight(weight, scales, table.quantizer.values, table.quantizer.group)
    return rounded
