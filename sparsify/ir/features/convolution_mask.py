"""Masks of the single weights of convolutions, `conv(x, W)  ->  conv(x, W * mask)`."""

import torch
from torch import fx

from sparsify.ir.features.feature import Feature
from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import convolution_mask
from sparsify.ir.views.convolution import convolutions
from sparsify.ir.views.linear import Linear

aten = torch.ops.aten


def add_convolution_mask(program: Program, view: Linear) -> None:
    """Multiply the weight that enters a convolution by a boolean mask of its shape, all true."""
    name = convolution_mask(view.weight)
    if not program.has(name):
        program.put(name, torch.ones_like(program.tensor(view.weight), dtype=torch.bool))
    writer = Writer(program, before=view.node)
    product = writer.call(aten.mul.Tensor, view.operand, writer.read(name))
    view.node.replace_input_with(view.operand, product)


def masked_convolutions(program: Program) -> list[Linear]:
    """Every use of a convolution's weight that has a mask."""
    return [view for view in convolutions(program) if view.mask is not None]


def drop_convolution_mask(program: Program, view: Linear) -> None:
    """Let the convolution read its weight as it is stored."""
    stored = view.operand.args[0]
    assert isinstance(stored, fx.Node)
    redirect(view.operand, stored)
    sweep(program)


FEATURES = (
    Feature(
        "mask.convolutions",
        (convolution_mask(""),),
        masked_convolutions,
        drop_convolution_mask,
    ),
)
