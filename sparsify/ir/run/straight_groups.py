"""Masks of channels and heads as masks of the weights that take them in, with straight-through gradients."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.features.group_mask import GroupMask
from sparsify.ir.program import Program
from sparsify.ir.run.straight_masks import straight_through

aten = torch.ops.aten


@contextlib.contextmanager
def straight_groups(program: Program, masks: Sequence[GroupMask]) -> Iterator[None]:
    """The same outputs with gradients that reach all of W inside the block; the text stays as it was.

    `y = (x * m) W^T` is computed as `y = x (W * m)^T`, `W [out, in]`, `m [in]`. Taken at the masked weights,
    the gradient of the columns that `m` leaves out is that of the zeros in their place, and nothing goes back
    to x through them. Nothing but the linear may read `x * m`.
    """
    aims: dict[fx.Node, Any] = {}
    for mask in masks:
        aims[mask.product] = _unmasked
        aims[mask.linear.node] = _MaskedProduct(program, mask)
    before = {node: node.target for node in aims}
    try:
        _aim(program, aims)
        yield
    finally:
        _aim(program, before)


def _aim(program: Program, targets: dict[fx.Node, Any]) -> None:
    for node, target in targets.items():
        node.target = target
    program.module.recompile()


def _unmasked(x: Tensor, mask: Tensor) -> Tensor:
    return x


class _MaskedProduct:
    """What stands in the graph in place of the product of a masked input and a weight."""

    # Generated code calls it by these.
    __name__ = "masked_product"
    __module__ = __name__

    def __init__(self, program: Program, mask: GroupMask) -> None:
        self.program, self.path = program, mask.path
        self.product: Any = mask.linear.node.target
        self.place = mask.linear.node.args.index(mask.linear.entering)
        # Other products than a linear take the weight as `[..., in, out]`.
        self.inputs = -1 if self.product is aten.linear.default else -2

    def __call__(self, *args: Any) -> Any:
        weight = args[self.place]
        mask = self.program.tensor(self.path)
        wide = mask.repeat_interleave(weight.shape[self.inputs] // mask.numel())
        wide = wide if self.inputs == -1 else wide[:, None]
        values = list(args)
        values[self.place] = straight_through(weight, wide)
        return self.product(*values)
