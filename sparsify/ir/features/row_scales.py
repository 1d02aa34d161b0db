"""Learnable scales of blocks of rows, `linear(x, W)  ->  linear(x, S * W)`."""

import torch

from sparsify.ir.features.composed import compose, drop_composition
from sparsify.ir.features.feature import Feature
from sparsify.ir.ops.scale_weight import scale_weight
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import row_scales
from sparsify.ir.views.linear import Linear, out_in, products


def add_row_scales(program: Program, linear: Linear, blocks: int) -> None:
    """Scale blocks of the rows of the weight that enters a linear, or its quantizer; ones at first."""
    name, weight = row_scales(linear.weight), program.tensor(linear.weight)
    if not program.has(name):
        *rows, _ = out_in(linear, weight).shape
        program.put(name, torch.ones(*rows, blocks).to(weight), trainable=True)
    layout = {"transposed": True} if linear.transposed else {}
    compose(
        program,
        linear,
        lambda writer, weight: writer.call(scale_weight, weight, writer.read(name), **layout),
    )


def scaled_linears(program: Program) -> list[Linear]:
    """Every use of a weight that has scales of its rows."""
    return [view for view in products(program) if view.row_scales is not None]


FEATURES = (
    Feature(
        "row-scales",
        (row_scales(""),),
        scaled_linears,
        lambda program, view: drop_composition(program, view, scales=True),
    ),
)
