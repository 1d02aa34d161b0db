"""Channel and head masks in the graph: a boolean `[size]` spread over the inputs of a linear."""

import torch
from torch import Tensor

from sparsify.errors import SparsifyError
from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.names import group_mask
from sparsify.ir.program import Program
from sparsify.ir.views import GroupMask, Linear

aten = torch.ops.aten


def add_group_mask(program: Program, linear: Linear, kind: str, size: int, index: Tensor) -> None:
    """Multiply the input `x [..., in]` of a linear by a mask `[size]`, each entry over its inputs.

    `index [in]` is the group of each input. The inputs of a group must stand together, all groups
    equally long, which is how heads and channels lie in memory; SparsifyError otherwise.
    """
    width = index.numel() // size
    if not torch.equal(index, torch.arange(size).repeat_interleave(width)):
        raise SparsifyError(f"the {kind} at the input of @{linear.weight} do not lie in equal runs")
    writer = Writer(program, before=linear.node)
    mask = writer.buffer(
        group_mask(linear.weight, kind),
        torch.ones(size, dtype=torch.bool, device=program.tensor(linear.weight).device),
    )
    if width > 1:
        mask = writer.call(aten.repeat_interleave.self_int, mask, width)
    linear.node.replace_input_with(linear.x, writer.call(aten.mul.Tensor, linear.x, mask))


def expand_group_mask(program: Program, mask: GroupMask, inputs: int) -> Tensor:
    """The mask over all inputs of its linear, boolean `[in]`."""
    value = program.tensor(mask.path)
    return value.repeat_interleave(inputs // value.numel())


def drop_group_mask(program: Program, mask: GroupMask) -> None:
    """Let the linear read the unmasked input."""
    redirect(mask.product, mask.x)
    sweep(program)
