"""Masks of everything that is not a single weight: where they stand, and what of it stays."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx

from sparsify.errors import OptionError
from sparsify.ir.axes.analysis import Analysis, Router
from sparsify.ir.axes.groups import Group, groups
from sparsify.ir.axes.residual import Block, blocks
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.block_mask import KINDS, block_mask_path, block_masks
from sparsify.ir.features.expert_mask import expert_masks
from sparsify.ir.features.group_mask import group_masks
from sparsify.ir.features.width_mask import width_masks
from sparsify.ir.program import Program
from sparsify.ir.views.probe import probe_behind
from sparsify.select.gradients import gradient_moments
from sparsify.select.groups import (
    Amount,
    Site,
    keep,
    matrices,
    of_one_axis,
    prunable,
    sites,
    unit_cost,
)
from sparsify.select.importance import (
    Criterion,
    Evidence,
    gather,
    importance,
    sensitivities,
    weight_norm,
)
from sparsify.select.influence import influences
from sparsify.select.statistics import statistics_of
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


def choose_experts(
    program: Program, chosen: set[str], by: Criterion, sparsity: float, multiple: int
) -> int:
    """Set the masks of experts, the same fraction at every router; returns how many.

    `chosen` are the matrices of routers that count. At least as many experts stay as a token is sent to.
    """
    masks = [mask for mask in expert_masks(program) if mask.weight in chosen]
    if not masks:
        raise OptionError("no target is a router with a mask; widen the targets")
    of = masked_experts(program)
    found = {mask.path: of[mask.path] for mask in masks}
    return _choose(program, found, by, sparsity, multiple)


def choose_width(program: Program, by: Criterion, sparsity: float, multiple: int) -> int:
    """Set the mask of every residual width; returns how many."""
    analysis = analyse(program)
    masks = width_masks(program)
    found = {mask.path: width_at(analysis, mask.weight) for mask in masks}
    return _choose(program, found, by, sparsity, multiple)


def _choose(
    program: Program, found: Mapping[str, Group], by: Criterion, sparsity: float, multiple: int
) -> int:
    scores = _scores(program, list(found.values()), by)
    for (path, group), score in zip(found.items(), scores, strict=True):
        kept = keep_blocks(score, sparsity, multiple, group.least)
        with torch.no_grad():
            program.tensor(path).copy_(kept)
    return len(found)


def _scores(program: Program, found: Sequence[Group], by: Criterion) -> list[Tensor]:
    """Importance `[size]` of every index of each group; see `sparsify.select.importance`."""
    if by.name == "activation":
        return [_levels(program, group) for group in found]
    if by.name == "magnitude":
        return [weight_norm(program, group) for group in found]
    assert by.data is not None
    paths = sorted({path for group in found for path, _ in matrices(program, group)})
    moments = gradient_moments(program, by.data, by.indices, paths)
    return [sensitivities(program, group, by.name, Evidence(moments=moments)) for group in found]


def _levels(program: Program, group: Group) -> Tensor:
    """What probes saw of a width: the sum over the inputs that linears read, each once.

    Source: Minitron (2407.14679), section 2.2, the embedding channels after every norm.
    """
    probes: dict[fx.Node, Tensor] = {}
    for consumer in group.consumers:
        probe = probe_behind(consumer.x)
        if probe is not None:
            found = statistics_of(program, consumer.x, consumer.weight)
            assert found.level is not None  # a probe always has it
            probes[probe.node] = found.level
    if not probes:
        raise OptionError("no linear that reads the hidden size has a probe; insert-probes first")
    return torch.stack(list(probes.values())).sum(0)


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


def choose_blocks(
    program: Program, kind: str, chosen: set[str], by: Criterion, keep: Callable[[Tensor], Tensor]
) -> int:
    """Set the masks of layers or blocks that hold one of the `chosen` matrices; returns how many.

    `keep` makes the keep-mask of scores `[blocks]`.
    """
    found = _blocks_among(program, kind, chosen)
    if by.name == "magnitude":
        scores = torch.tensor([mean_weight(program, block) for block in found.values()])
    else:
        assert by.data is not None
        scores = influences(program, found, by.data, by.indices, by.batch)
    with torch.no_grad():
        for path, stays in zip(found, keep(scores), strict=True):
            program.tensor(path).fill_(bool(stays))
    return len(found)


def choose_groups(
    program: Program, kinds: Sequence[str], chosen: set[str], by: Criterion, amount: Amount
) -> int:
    """Set the masks of channels and heads before the `chosen` matrices; returns how many."""
    analysis, present = analyse(program), group_masks(program)
    found: list[Site] = []
    for kind in kinds:
        found += [s for s in sites(analysis, present, kind) if s.mask.linear.weight in chosen]
        if not found or found[-1].mask.kind != kind:
            raise OptionError(f"no target has a mask of {kind}; name the linears that take them in")
    evidence = gather(program, found, by)
    scored = of_one_axis([importance(program, site, by, evidence) for site in found], found)
    costs = [unit_cost(program, site, amount.rule) for site in found]
    masks = keep(scored, found, amount, costs)
    with torch.no_grad():
        for site, mask in zip(found, masks, strict=True):
            program.tensor(site.mask.path).copy_(mask)
    return len(masks)


def _blocks_among(program: Program, kind: str, chosen: set[str]) -> dict[str, Block]:
    """The masked layers or blocks that hold one of the `chosen` matrices, by the path of the mask."""
    found = {
        path: block
        for path, block in masked_blocks(program, kind).items()
        if not chosen.isdisjoint(block.weights)
    }
    if not found:
        raise OptionError(f"no target lies in masked {kind}; widen the targets")
    return found


def most(program: Program, kind: str) -> int:
    """How many of a kind there are: in the layer with most, or layers in all."""
    analysis = analyse(program)
    if kind in KINDS:
        return len(blocks(analysis, kind))
    return max((group.size for group in prunable(analysis, kind)), default=0)
