"""Convolutions as linear maps of windows, read off their nodes."""

import torch
from torch import fx

from sparsify.ir.program import Program
from sparsify.ir.tensor_names import convolution_mask
from sparsify.ir.views.composition import reads
from sparsify.ir.views.linear import Linear

aten = torch.ops.aten
_OPS = frozenset(
    getattr(getattr(aten, f"conv{rank}d"), form)
    for rank in (1, 2, 3)
    for form in ("default", "padding")
)


def convolutions(program: Program) -> list[Linear]:
    """Every convolution whose weight is a named tensor, in graph order.

    The weight is stored `[out, in / groups, *window]`: its first dimension is that of a linear's rows.
    """
    return [v for node in program.graph.nodes if (v := convolution_at(program, node)) is not None]


def convolution_at(program: Program, node: fx.Node) -> Linear | None:
    """The convolution that a node computes, with its mask; None when its weight is not a named tensor."""
    if node.op != "call_function" or node.target not in _OPS:
        return None
    x, operand = node.args[:2]
    if not isinstance(x, fx.Node) or not isinstance(operand, fx.Node):
        return None
    masked = operand.target is aten.mul.Tensor
    stored = operand.args[0] if masked else operand
    if not isinstance(stored, fx.Node) or stored.op != "get_attr":
        return None
    path = str(stored.target)
    mask = convolution_mask(path) if masked else None
    if mask is not None and not reads(operand.args[1], mask, depth=0):
        return None
    return Linear(node, x, path, operand, transposed=False, mask=mask)
