"""Physical removal of what masks of channels, heads, experts or the width leave out."""

import torch

from sparsify.errors import SparsifyError
from sparsify.ir.axes.groups import Heads
from sparsify.ir.axes.shrink.keep import Keep
from sparsify.ir.axes.shrink.shrink import shrink
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.expert_mask import drop_expert_mask, expert_masks
from sparsify.ir.features.group_mask import drop_group_mask, group_masks
from sparsify.ir.features.width_mask import drop_width_mask, width_masks
from sparsify.ir.program import Program
from sparsify.select.channels_and_heads import masked_experts, width_at
from sparsify.select.groups import sites


def remove_masked(program: Program, kind: str) -> int:
    """Slice every tensor of the masked groups, drop the masks, and record the plan; returns the sites.

    Kept indices go to `program.plan["axes"]`. Raises SparsifyError when masks of one coupled axis disagree
    or leave nothing.
    """
    found = sites(analyse(program), group_masks(program), kind)
    keep = Keep()
    kept_of: dict[object, list[int]] = {}
    for site in found:
        kept = torch.nonzero(program.tensor(site.mask.path)).flatten().tolist()
        if kept_of.setdefault(site.of.key, kept) != kept:
            raise SparsifyError(f"@{site.mask.path} disagrees with another mask of the same {kind}")
        if isinstance(site.of, Heads):
            keep.heads(site.of, kept)
        else:
            keep.group(site.of, kept)
    _shrink(program, keep)
    for mask in [m for m in group_masks(program) if m.kind == kind]:
        drop_group_mask(program, mask)
    return len(found)


def remove_experts(program: Program) -> int:
    """Slice the matrices of masked experts and the rows of their routers; returns the masks.

    Raises OptionError when fewer experts would stay than a token is sent to.
    """
    keep = Keep()
    found = masked_experts(program)
    for path, group in found.items():
        keep.group(group, torch.nonzero(program.tensor(path)).flatten().tolist())
    _shrink(program, keep)
    for mask in expert_masks(program):
        drop_expert_mask(program, mask)
    return len(found)


def remove_width(program: Program) -> int:
    """Slice every tensor that carries a masked residual width; returns the masks."""
    masks = width_masks(program)
    for mask in masks:
        kept = torch.nonzero(program.tensor(mask.path)).flatten().tolist()
        drop_width_mask(program, mask)
        keep = Keep()
        keep.group(width_at(analyse(program), mask.weight), kept)
        _shrink(program, keep)
    return len(masks)


def _shrink(program: Program, keep: Keep) -> None:
    program.plan.setdefault("axes", []).append(shrink(program, keep))
