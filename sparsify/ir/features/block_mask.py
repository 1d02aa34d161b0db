"""Masks of layers and residual blocks in the graph: a boolean `[1]` that chooses between two values.

y            ->  where(mask, y, x)       x the stream that the block starts from
t in a sum   ->  t * mask                t one of several terms that are computed side by side

Where the mask is true the values are bitwise those of the program without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from sparsify.ir.axes.residual import Block
from sparsify.ir.features.feature import Feature
from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import group_mask

aten = torch.ops.aten
KINDS: tuple[Literal["layers", "blocks"], ...] = ("layers", "blocks")


@dataclass(frozen=True)
class BlockMask:
    """The mask of a layer or block: `node` is `y` where the mask is true.

    Where it is false, `node` is `instead`, or zero when `instead` is None. `path` is the mask `[1]`.
    """

    kind: str
    path: str
    node: fx.Node
    y: fx.Node
    instead: fx.Node | None


def block_masks(program: Program, kind: str) -> list[BlockMask]:
    """Every mask of a kind, in graph order."""
    found = []
    for node in program.graph.nodes:
        path = _mask_read(program, node, f"_{kind}_mask")
        if path is not None and node.target is aten.where.self:
            found.append(BlockMask(kind, path, node, node.args[1], node.args[2]))
        elif path is not None:
            found.append(BlockMask(kind, path, node, node.args[0], None))
    return found


def block_mask_path(block: Block) -> str:
    """The path of the mask of a block: after the last of its matrices that is the model's own."""
    assert block.last is not None
    return group_mask(block.last, block.kind)


def add_block_masks(program: Program, found: Sequence[Block]) -> None:
    """Let a mask `[1]`, true at first, choose between each block and its absence; blocks in graph order."""
    # The last first: what a block starts from is then still the block before it, mask and all.
    for block in reversed(found):
        _add_mask(program, block)


def _add_mask(program: Program, block: Block) -> None:
    path = block_mask_path(block)
    mask = torch.ones(1, dtype=torch.bool, device=program.tensor(block.weights[-1]).device)
    writer = Writer(program, after=block.y)
    if block.user is None:
        chosen = writer.call(aten.where.self, writer.buffer(path, mask), block.y, block.x)
        redirect(block.y, chosen)
    else:
        product = writer.call(aten.mul.Tensor, block.y, writer.buffer(path, mask))
        block.user.replace_input_with(block.y, product)


def drop_block_mask(program: Program, mask: BlockMask) -> None:
    """Let the program read the block as it is."""
    redirect(mask.node, mask.y)
    sweep(program)


def settle_block(program: Program, kind: str, path: str, *, stays: bool) -> None:
    """Drop the mask at a path, and the block too unless it stays; unread tensors are deleted."""
    # Read anew each time: what one block goes on with may have been the mask of another.
    for mask in [mask for mask in block_masks(program, kind) if mask.path == path]:
        (drop_block_mask if stays else _remove)(program, mask)


def _remove(program: Program, mask: BlockMask) -> None:
    if mask.instead is not None:
        redirect(mask.node, mask.instead)
    else:
        for user in list(mask.node.users):
            (other,) = (part for part in user.all_input_nodes if part is not mask.node)
            redirect(user, other)
    sweep(program)


def _mask_read(program: Program, node: fx.Node, suffix: str) -> str | None:
    """The path of the mask that a node chooses by."""
    if node.target not in (aten.where.self, aten.mul.Tensor):
        return None
    place = node.args[0 if node.target is aten.where.self else 1]
    if not isinstance(place, fx.Node) or place.op != "get_attr":
        return None
    path = str(place.target)
    ours = path.endswith(suffix) and program.has(path.removesuffix(suffix))
    return path if ours else None


def _of(kind: str) -> Feature:
    return Feature(
        f"mask.{kind}",
        (group_mask("", kind),),
        lambda program: block_masks(program, kind),
        drop_block_mask,
    )


FEATURES = tuple(_of(kind) for kind in KINDS)
