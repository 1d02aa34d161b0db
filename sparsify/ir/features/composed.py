"""Weights that are composed, `W_eff = Q(S * mask * (W + c * B A))`: where parts go in and come out."""

from collections.abc import Callable

import torch
from torch import fx

from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.ops.scale_weight import scale_weight
from sparsify.ir.program import Program
from sparsify.ir.views.composition import chain
from sparsify.ir.views.linear import Linear, product_at

aten = torch.ops.aten


def drop_composition(program: Program, linear: Linear, **parts: bool) -> None:
    """Take the mask, the branch or the scales of rows out of the weight of a linear; see `take_out`."""
    take_out(program, linear, **parts)
    sweep(program)


def take_out(
    program: Program,
    linear: Linear,
    *,
    mask: bool = False,
    branch: bool = False,
    scales: bool = False,
) -> None:
    """Take parts out of the weight of one of many linears, and leave the `sweep` for after the last."""
    # Read afresh: a shared weight may have lost its composition with another of its linears.
    view = product_at(program, linear.node)
    assert view is not None
    for node in chain(view.operand)[:-1]:
        dropped = (branch, aten.add.Tensor), (mask, aten.mul.Tensor), (scales, scale_weight)
        if any(wanted and node.target is target for wanted, target in dropped):
            inner = node.args[0]
            assert isinstance(inner, fx.Node)
            redirect(node, inner)


def compose(program: Program, linear: Linear, part: Callable[[Writer, fx.Node], fx.Node]) -> None:
    """Let a node that `part` makes of the weight that enters a linear, or its quantizer, enter instead."""
    reader, operand = _unrounded(linear)
    reader.replace_input_with(operand, part(Writer(program, before=reader), operand))


def _unrounded(linear: Linear) -> tuple[fx.Node, fx.Node]:
    """The node that reads a composed weight before it is rounded, and that weight."""
    if linear.quantizer is None:
        return linear.reader, linear.operand
    return linear.quantizer.node, chain(linear.operand)[1]
