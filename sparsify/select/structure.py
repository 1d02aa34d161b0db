"""Masks of experts, the residual width, layers and blocks: where they stand, and the lightest ones to go."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsify.errors import OptionError
from sparsify.ir.axes.analysis import Analysis, Router
from sparsify.ir.axes.groups import Group, groups
from sparsify.ir.axes.residual import Block, blocks
from sparsify.ir.axes.walk import analyse
from sparsify.ir.blockmask import KINDS, block_mask_path, block_masks
from sparsify.ir.experts import expert_masks
from sparsify.ir.program import Program
from sparsify.ir.widthmask import width_masks
from sparsify.select.groups import prunable
from sparsify.select.importance import weight_norm
from sparsify.tensors.masks import keep_top, zeros_of


def masked_blocks(program: Program, kind: str) -> dict[str, Block]:
    """The layers or blocks that have a mask, by its path, in graph order."""
    stand = {mask.path for mask in block_masks(program, kind)}
    found = {block_mask_path(block): block for block in blocks(analyse(program), kind)}
    return {path: block for path, block in found.items() if path in stand}


def routers(analysis: Analysis) -> list[Router]:
    """The routers whose experts nothing pins, in graph order."""
    free = {group.leaf for group in groups(analysis) if group.kind == "experts" and group.prunable}
    return [router for router in analysis.routers if router.axis.root() in free]


def masked_experts(program: Program) -> dict[str, Group]:
    """The experts that have a mask, by its path, in graph order."""
    analysis = analyse(program)
    by_leaf = {group.leaf: group for group in groups(analysis)}
    found = {router.weight: by_leaf[router.axis.root()] for router in routers(analysis)}
    return {mask.path: found[mask.weight] for mask in expert_masks(program)}


def choose_experts(program: Program, chosen: set[str], sparsity: float, multiple: int) -> int:
    """Set the masks of experts by their weight norms, the same fraction at every router.

    `chosen` are the matrices of routers that count. At least as many experts stay as a token is sent
    to. Returns how many masks.
    """
    masks = [mask for mask in expert_masks(program) if mask.weight in chosen]
    if not masks:
        raise OptionError("no target is a router with a mask; widen the targets")
    of = masked_experts(program)
    for mask in masks:
        group = of[mask.path]
        kept = keep_blocks(weight_norm(program, group), sparsity, multiple, group.least)
        with torch.no_grad():
            program.tensor(mask.path).copy_(kept)
    return len(masks)


def widths(analysis: Analysis) -> list[Group]:
    """The residual widths that nothing pins; OptionError when there are none."""
    found = [group for group in groups(analysis) if group.kind == "hidden"]
    free = [group for group in found if group.prunable and group.consumers]
    if not free:
        why = "; ".join(found[0].pins[:2]) if found else "there is no residual sum x + f(x)"
        raise OptionError(f"the program has no prunable hidden size: {why}")
    return free


def width_at(analysis: Analysis, path: str) -> Group:
    """The residual width whose first tensor is at a path."""
    return next(group for group in widths(analysis) if group.key[0] == path)


def choose_width(program: Program, sparsity: float, multiple: int) -> int:
    """Set the mask of every residual width by the weight norms of its features; returns how many."""
    analysis = analyse(program)
    masks = width_masks(program)
    for mask in masks:
        group = width_at(analysis, mask.weight)
        kept = keep_blocks(weight_norm(program, group), sparsity, multiple)
        with torch.no_grad():
            program.tensor(mask.path).copy_(kept)
    return len(masks)


def mean_weight(program: Program, block: Block) -> float:
    """The mean of |W| over the matrices inside a layer or block."""
    values = [program.tensor(path).detach().float().abs() for path in block.weights]
    total = sum(float(value.sum()) for value in values)
    return total / sum(value.numel() for value in values)


def keep_blocks(scores: Tensor, sparsity: float, multiple: int, least: int = 1) -> Tensor:
    """The keep-mask `[size]` of the highest scores; the number kept is rounded up to a multiple.

    Raises OptionError when nothing would be removed.
    """
    size = scores.numel()
    count = size - zeros_of(size, sparsity)
    count = min(size, -(-max(least, count) // multiple) * multiple)
    if count == size and sparsity > 0:
        raise OptionError(
            f"a sparsity of {sparsity} with multiple={multiple} removes none of {size}; raise it"
        )
    return keep_top(scores, count)


def blocks_among(program: Program, kind: str, chosen: set[str]) -> dict[str, Block]:
    """The masked layers or blocks that hold one of the `chosen` matrices, by the path of the mask."""
    found = {
        path: block
        for path, block in masked_blocks(program, kind).items()
        if not chosen.isdisjoint(block.weights)
    }
    if not found:
        raise OptionError(f"no target lies in masked {kind}; widen the targets")
    return found


def set_blocks(program: Program, found: Mapping[str, Block], kept: Tensor) -> int:
    """Write a keep-mask `[blocks]` into the masks of blocks; returns how many."""
    with torch.no_grad():
        for path, stays in zip(found, kept, strict=True):
            program.tensor(path).fill_(bool(stays))
    return len(found)


def most(program: Program, kind: str) -> int:
    """How many of a kind there are: in the layer with most, or layers in all."""
    analysis = analyse(program)
    if kind in KINDS:
        return len(blocks(analysis, kind))
    return max((group.size for group in prunable(analysis, kind)), default=0)
