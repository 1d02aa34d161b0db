"""What the rewrites of the lowering look for."""

import torch
from torch import fx

from sparsify.ir.graph import sweep
from sparsify.ir.program import Program

aten = torch.ops.aten
RESHAPES = {aten.view.default, aten.reshape.default, aten._unsafe_view.default}


def swept(program: Program, count: int) -> int:
    """The number of rewrites, after what nobody reads any more is gone."""
    if count:
        sweep(program)
    return count


def size_of(node: object, dim: int) -> int | torch.SymInt:
    """The size of one dimension of what a node computes."""
    assert isinstance(node, fx.Node)
    size: int | torch.SymInt = node.meta["val"].shape[dim]
    return size
