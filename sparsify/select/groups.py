"""Masks for channels and attention heads: scores summed over a coupled axis, and how many stay."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.ir.axes.groups import Group, Heads, groups, heads
from sparsify.ir.axes.index import expand_index, group_scores, reduce
from sparsify.ir.axes.walk import Analysis
from sparsify.ir.groupmask import GroupMask
from sparsify.ir.program import Program
from sparsify.ir.views import effective_weight, out_in
from sparsify.select.statistics import statistics_of
from sparsify.tensors.masks import keep_across, keep_top, zeros_of

Rule = Literal["groups", "inside"]


@dataclass(frozen=True)
class Site:
    """One channel or head mask of the program and the coupled axis it stands for."""

    mask: GroupMask
    of: Group | Heads

    @property
    def per_group(self) -> int:
        """Query heads of one KV group; 1 for channels and for attention without groups."""
        return self.of.rep_size if isinstance(self.of, Heads) else 1


def prunable(analysis: Analysis, kind: str) -> list[Group] | list[Heads]:
    """The channel groups or attention heads that nothing pins and a linear consumes."""
    if kind == "heads":
        return [h for h in heads(analysis) if h.prunable and h.consumers]
    return [g for g in groups(analysis) if g.kind == kind and g.prunable and g.consumers]


def sites(analysis: Analysis, masks: list[GroupMask], kind: str) -> list[Site]:
    """The masks of a kind with their axes, in graph order.

    Raises SparsifyError when a mask stands at no prunable axis any more.
    """
    by_weight = {c.weight: found for found in prunable(analysis, kind) for c in found.consumers}
    chosen = []
    for mask in masks:
        if mask.kind == kind:
            if mask.linear.weight not in by_weight:
                raise SparsifyError(
                    f"@{mask.path} masks no prunable axis; remove and insert it again"
                )
            chosen.append(Site(mask, by_weight[mask.linear.weight]))
    return chosen


def score(program: Program, site: Site, name: str, derivatives: Mapping[str, Tensor]) -> Tensor:
    """Importance `[size]` of each channel or head of a site.

    `magnitude`: sum of |W| over every weight of the group (rows that make it, columns that read it);
    `activation`: sum of ||x_j|| over its inputs j (Minitron, 2407.14679); `wanda`: sum of |W_ij| ||x_j|| over
    the reading columns (Wanda-sp, 2312.11983); `taylor`: what `derivatives` holds for the mask's path,
    the mean |dLoss / dmask| (Michel et al. 2019, section 4.1).
    """
    view, of = site.mask.linear, site.of
    if name == "magnitude":
        return weight_norm(program, of)
    if name == "taylor":
        return derivatives[site.mask.path]
    norms = statistics_of(program, view.x, view.weight).square.sqrt()
    if name == "wanda":
        weight = out_in(view, effective_weight(program, view)).float().abs()
        norms = norms * weight.flatten(0, -2).sum(0)
    return reduce(input_index(site), norms, of.size)


def input_index(site: Site) -> Tensor:
    """The channel or head number of each input of the masked linear, `[in]`."""
    weight = site.mask.linear.weight
    consumer = next(c for c in site.of.consumers if c.weight == weight)
    return expand_index(consumer, site.of)


def of_one_axis(scored: list[Tensor], chosen: list[Site]) -> list[Tensor]:
    """Scores summed over the masks of one axis: heads that several attentions share go together."""
    total: dict[object, Tensor] = {}
    for values, site in zip(scored, chosen, strict=True):
        total[site.of.key] = total[site.of.key] + values if site.of.key in total else values
    return [total[site.of.key] for site in chosen]


def keep(
    scored: list[Tensor],
    chosen: list[Site],
    sparsity: float,
    *,
    scope: str,
    rule: Rule,
    multiple: int,
) -> list[Tensor]:
    """Keep-masks `[size]`, one a site: the same fraction everywhere, or ranked over all sites together.

    Heads go by whole KV groups (`groups`) or the same number inside each (`inside`). The number kept is
    rounded up to a multiple, and at least one stays. Raises OptionError when nothing would be removed.
    """
    pooled = [_pool(s, site, rule) for s, site in zip(scored, chosen, strict=True)]
    if scope == "global":
        flat = keep_across(
            [p.mean(1) if rule == "groups" else p.flatten() for p in pooled], sparsity
        )
        counts = [max(1, int(mask.sum())) for mask in flat]
        if rule == "inside":
            counts = [max(1, round(c / p.shape[0])) for c, p in zip(counts, pooled, strict=True)]
    else:
        width = 0 if rule == "groups" else 1
        counts = [p.shape[width] - zeros_of(p.shape[width], sparsity) for p in pooled]
    masks = [_keep_in(p, count, rule, multiple) for p, count in zip(pooled, counts, strict=True)]
    if all(bool(mask.all()) for mask in masks) and sparsity > 0:
        raise OptionError(
            f"a sparsity of {sparsity} with rule={rule} and multiple={multiple} removes nothing from "
            f"sizes {sorted({m.numel() for m in masks})}; raise it or change the rule"
        )
    return masks


def _pool(scores: Tensor, site: Site, rule: Rule) -> Tensor:
    """Scores as `[KV groups, heads of a group]`; channels are groups of one."""
    rows = scores.reshape(-1, site.per_group)
    if rule == "inside" and site.per_group == 1:
        # Without groups every head is free: one group that holds them all.
        rows = rows.reshape(1, -1)
    return rows


def _keep_in(pooled: Tensor, count: int, rule: Rule, multiple: int) -> Tensor:
    if rule == "groups":
        total = pooled.shape[0]
        count = min(total, -(-count // multiple) * multiple)
        rows = keep_top(pooled.sum(1), count)
        return rows[:, None].expand_as(pooled).reshape(-1)
    count = min(pooled.shape[1], -(-count // multiple) * multiple)
    return torch.stack([keep_top(row, count) for row in pooled]).reshape(-1)


def weight_norm(program: Program, of: Group | Heads) -> Tensor:
    """The sum of |W| over every weight of a group, `[size]`."""
    total = torch.zeros(of.size)
    parts = [(m.path, m.dim) for m in of.members] + [(c.weight, c.dim) for c in of.consumers]
    for path, dim in dict.fromkeys(parts):
        value = program.tensor(path)
        if value.is_floating_point() and value.dim() >= 2 and "_probe_" not in path:
            total += group_scores(of, path, dim, value.detach().float().abs())
    return total
