"""Straight-through masks: the graph as it is trained while masks move."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsify.ir.program import Program
from sparsify.ir.views.composition import chain, reads
from sparsify.ir.views.linear import Linear

aten = torch.ops.aten


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def straight_through(weight: Tensor, mask: Tensor) -> Tensor:
    """`W * mask`, whose gradient reaches the whole of `W` unchanged (Bengio et al. 2013, 1308.3432)."""
    product: Tensor = _StraightThrough.apply(weight, mask)  # type: ignore[no-untyped-call]
    return product


@contextlib.contextmanager
def straight_masks(program: Program, views: Sequence[Linear]) -> Iterator[None]:
    """Masks of linears with straight-through gradients inside the block; the text stays as it was."""
    nodes = [
        node
        for view in views
        for node in chain(view.operand)
        if view.mask is not None
        and node.target is aten.mul.Tensor
        and reads(node.args[1], view.mask)
    ]
    try:
        _aim(program, nodes, straight_through)
        yield
    finally:
        _aim(program, nodes, aten.mul.Tensor)


def _aim(program: Program, nodes: Sequence[torch.fx.Node], target: Any) -> None:
    for node in nodes:
        node.target = target
    program.module.recompile()
