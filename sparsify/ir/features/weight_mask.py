"""Masks of single weights, `linear(x, W)  ->  linear(x, W * mask)`."""

import torch
from torch import Tensor

from sparsify.ir.features.composed import compose, drop_composition
from sparsify.ir.features.feature import Feature
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import weight_mask
from sparsify.ir.views.linear import Linear, products

aten = torch.ops.aten


def add_mask(program: Program, path: str, mask: Tensor, linear: Linear) -> None:
    """Multiply the weight that enters a linear, or its quantizer, by a boolean mask in its stored layout."""
    name = weight_mask(path)
    if not program.has(name):
        program.put(name, mask)
    compose(
        program,
        linear,
        lambda writer, weight: writer.call(aten.mul.Tensor, weight, writer.read(name)),
    )


def masked_linears(program: Program) -> list[Linear]:
    """Every use of a weight that has a mask."""
    return [view for view in products(program) if view.mask is not None]


FEATURES = (
    Feature(
        "mask.weights",
        (weight_mask(""),),
        masked_linears,
        lambda program, view: drop_composition(program, view, mask=True),
    ),
)
