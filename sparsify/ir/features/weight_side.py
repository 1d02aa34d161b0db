"""Composition on the weight side: `W_eff = Q(S * mask * (W + c * B A))`, its insertion and removal."""

import torch
from torch import Tensor, fx

from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.ops.scale_weight import scale_weight
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import row_scales, weight_mask
from sparsify.ir.views.composition import chain
from sparsify.ir.views.linear import Linear, linear_at, out_in

aten = torch.ops.aten


def add_mask(program: Program, path: str, mask: Tensor, linear: Linear) -> None:
    """Multiply the weight that enters a linear, or its quantizer, by a boolean mask in its stored layout."""
    name = weight_mask(path)
    if not program.has(name):
        program.put(name, mask)
    reader, operand = _unrounded(linear)
    writer = Writer(program, before=reader)
    masked = writer.call(aten.mul.Tensor, operand, writer.read(name))
    reader.replace_input_with(operand, masked)


def add_row_scales(program: Program, linear: Linear, blocks: int) -> None:
    """Scale blocks of the rows of the weight that enters a linear, or its quantizer; ones at first."""
    name, weight = row_scales(linear.weight), program.tensor(linear.weight)
    if not program.has(name):
        outputs = out_in(linear, weight).shape[0]
        program.put(name, torch.ones(outputs, blocks).to(weight), trainable=True)
    reader, operand = _unrounded(linear)
    writer = Writer(program, before=reader)
    layout = {"transposed": True} if linear.transposed else {}
    scaled = writer.call(scale_weight, operand, writer.read(name), **layout)
    reader.replace_input_with(operand, scaled)


def drop_composition(
    program: Program,
    linear: Linear,
    *,
    mask: bool = False,
    branch: bool = False,
    scales: bool = False,
) -> None:
    """Take the mask, the branch or the scales of rows out of the weight of a linear."""
    # Read afresh: a shared weight may have lost its composition with another of its linears.
    view = linear_at(program, linear.node)
    assert view is not None
    for node in chain(view.operand)[:-1]:
        dropped = (branch, aten.add.Tensor), (mask, aten.mul.Tensor), (scales, scale_weight)
        if any(wanted and node.target is target for wanted, target in dropped):
            inner = node.args[0]
            assert isinstance(inner, fx.Node)
            redirect(node, inner)
    sweep(program)


def _unrounded(linear: Linear) -> tuple[fx.Node, fx.Node]:
    """The node that reads a composed weight before it is rounded, and that weight."""
    if linear.quantizer is None:
        return linear.node, linear.operand
    return linear.quantizer.node, chain(linear.operand)[1]
