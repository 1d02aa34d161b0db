"""Masks for channels and attention heads: the coupled axes they stand for, and how many stay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.ir.axes.groups import Group, Heads, groups, heads
from sparsify.ir.axes.shrink.choice import expand_index, group_scores
from sparsify.ir.axes.walk import Analysis, analyse
from sparsify.ir.features.group_mask import GroupMask
from sparsify.ir.program import Program
from sparsify.tensors.masks import keep_affordable, keep_top, zeros_of

Rule = Literal["groups", "inside"]


@dataclass(frozen=True)
class Amount:
    """How much stays: a fraction that goes (`sparsity`), or the size of each kind that stays (`sizes`).

    `scope` is `global` for one ranking over all sites, `per_parameter` ranks there by score over cost.
    `multiple` rounds the number kept of the kinds in `rounded` up.
    """

    sparsity: float = 0.0
    sizes: Mapping[str, int] = field(default_factory=dict)
    scope: str = "auto"
    rule: Rule = "groups"
    multiple: int = 1
    rounded: frozenset[str] = frozenset({"heads", "channels"})
    per_parameter: bool = False

    def step(self, kind: str) -> int:
        """What the number kept of a kind is rounded up to a multiple of."""
        return self.multiple if kind in self.rounded else 1


@dataclass(frozen=True)
class MaskedAxis:
    """One channel or head mask of the program and the coupled axis it stands for."""

    mask: GroupMask
    of: Group | Heads

    @property
    def per_group(self) -> int:
        """Query heads of one KV group, which go together; 1 for channels, and where one group serves all."""
        return self.of.rep_size if isinstance(self.of, Heads) and self.of.kv is not None else 1


def prunable(analysis: Analysis, kind: str) -> list[Group] | list[Heads]:
    """The channel groups or attention heads that nothing pins and a linear consumes."""
    if kind == "heads":
        return [h for h in heads(analysis) if h.prunable and h.consumers]
    return [g for g in groups(analysis) if g.kind == kind and g.prunable and g.consumers]


def sites(analysis: Analysis, masks: list[GroupMask], kind: str) -> list[MaskedAxis]:
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
            chosen.append(MaskedAxis(mask, by_weight[mask.linear.weight]))
    return chosen


def input_index(site: MaskedAxis) -> Tensor:
    """The channel or head number of each input of the masked linear, `[in]`."""
    weight = site.mask.linear.weight
    consumer = next(c for c in site.of.consumers if c.weight == weight)
    return expand_index(consumer, site.of)


def of_one_axis(scored: list[Tensor], chosen: list[MaskedAxis]) -> list[Tensor]:
    """Scores summed over the masks of one axis: heads that several attentions share go together."""
    total: dict[object, Tensor] = {}
    for values, site in zip(scored, chosen, strict=True):
        total[site.of.key] = total[site.of.key] + values if site.of.key in total else values
    return [total[site.of.key] for site in chosen]


def keep(
    scored: Sequence[Tensor], chosen: Sequence[MaskedAxis], amount: Amount, costs: Sequence[float]
) -> list[Tensor]:
    """As `ranked`; OptionError when nothing would be removed."""
    masks = ranked(scored, chosen, amount, costs)
    if all(bool(mask.all()) for mask in masks) and amount.sparsity > 0:
        raise OptionError(
            f"a sparsity of {amount.sparsity} with rule={amount.rule} and "
            f"multiple={amount.multiple} removes nothing from sizes "
            f"{sorted({m.numel() for m in masks})}; raise it or change the rule"
        )
    return masks


def ranked(
    scored: Sequence[Tensor], chosen: Sequence[MaskedAxis], amount: Amount, costs: Sequence[float]
) -> list[Tensor]:
    """Keep-masks `[size]`, one a site, from the scores `[size]` of its heads or channels.

    Heads go by whole KV groups (`groups`) or the same number inside each (`inside`). `costs` are the
    parameters that one of these units takes along; they share out a global budget. The number kept is
    rounded up to a multiple, and at least one unit stays. Raises OptionError when a size cannot be kept.
    """
    pooled = [_pool(s, site, amount.rule) for s, site in zip(scored, chosen, strict=True)]
    if amount.sizes:
        counts = [_wanted(site, amount) for site in chosen]
    elif amount.scope == "global":
        counts = _global_counts(pooled, costs, amount)
    else:
        width = 0 if amount.rule == "groups" else 1
        counts = [p.shape[width] - zeros_of(p.shape[width], amount.sparsity) for p in pooled]
    return [
        _keep_in(p, count, amount, site.mask.kind)
        for p, count, site in zip(pooled, counts, chosen, strict=True)
    ]


def keep_some(scores: Tensor, sparsity: float, multiple: int, least: int = 1) -> Tensor:
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


def heads_left(program: Program, amount: Amount) -> tuple[int, int, int, int] | None:
    """Query heads and KV groups of every attention, and what `keep` leaves of them, known before any score.

    None where they differ from layer to layer. `scope` is not looked at.
    """
    found = {
        (of.size, of.kv_size, *_left(of, amount))
        for of in heads(analyse(program))
        if of.prunable and of.consumers
    }
    return next(iter(found)) if len(found) == 1 else None


def _left(of: Heads, amount: Amount) -> tuple[int, int]:
    groups, inside = of.kv_size, of.rep_size
    if of.kv is None:
        groups = inside
    elif amount.rule == "inside" and inside == 1:
        groups, inside = 1, of.size
    units = groups if amount.rule == "groups" else inside
    if amount.sizes:
        count = amount.sizes["heads"] * units // of.size
    else:
        step = amount.step("heads")
        count = min(units, -(-(units - zeros_of(units, amount.sparsity)) // step) * step)
    left = count * of.size // units
    if of.kv is None:
        return left, 1
    return left, left // of.rep_size if amount.rule == "groups" or of.rep_size == 1 else of.kv_size


def unit_cost(program: Program, site: MaskedAxis, rule: Rule) -> float:
    """The parameters that go with one channel, one query head (`inside`) or one KV group (`groups`)."""
    of: Group | Heads = site.of
    if isinstance(of, Heads) and rule == "groups" and of.kv is not None:
        of = of.kv
    return (
        sum(
            float(group_scores(of, path, dim, torch.ones(program.tensor(path).shape)).sum())
            for path, dim in matrices(program, of)
        )
        / of.size
    )


def matrices(program: Program, of: Group | Heads) -> list[tuple[str, int]]:
    """The matrices of parameters that an axis lives in: path and dimension, each once."""
    parts = [(m.path, m.dim) for m in of.members] + [(c.weight, c.dim) for c in of.consumers]
    return [
        (path, dim)
        for path, dim in dict.fromkeys(parts)
        if isinstance(value := program.tensor(path), torch.nn.Parameter) and value.dim() >= 2
    ]


def _global_counts(pooled: Sequence[Tensor], costs: Sequence[float], amount: Amount) -> list[int]:
    """How many units of each site stay when all are ranked together."""
    units = [p.mean(1) if amount.rule == "groups" else p.flatten() for p in pooled]
    if amount.per_parameter:
        sizes = [p.shape[1] if amount.rule == "groups" else 1 for p in pooled]
        units = [u * n / c for u, n, c in zip(units, sizes, costs, strict=True)]
    counts = [max(1, int(m.sum())) for m in keep_affordable(units, costs, amount.sparsity)]
    if amount.rule == "inside":
        counts = [max(1, round(c / p.shape[0])) for c, p in zip(counts, pooled, strict=True)]
    return counts


def _wanted(site: MaskedAxis, amount: Amount) -> int:
    """The units of a site that a target shape keeps."""
    kind, size = site.mask.kind, amount.sizes[site.mask.kind]
    share = site.per_group if amount.rule == "groups" else site.of.size // site.per_group
    if amount.rule == "inside" and site.per_group == 1:
        share = 1
    if not 0 < size <= site.of.size or size % share:
        step = f", in steps of {share} with rule={amount.rule}" if share > 1 else ""
        raise OptionError(
            f"{kind}={size} cannot be kept of the {site.of.size} {kind} at @{site.mask.linear.weight}; "
            f"it must be 1 to {site.of.size}{step}"
        )
    return size // share


def _pool(scores: Tensor, site: MaskedAxis, rule: Rule) -> Tensor:
    """Scores as `[KV groups, heads of a group]`; channels are groups of one."""
    rows = scores.reshape(-1, site.per_group)
    if rule == "inside" and site.per_group == 1:
        # Without groups every head is free: one group that holds them all.
        rows = rows.reshape(1, -1)
    return rows


def _keep_in(pooled: Tensor, count: int, amount: Amount, kind: str) -> Tensor:
    multiple = amount.step(kind)
    if amount.rule == "groups":
        count = min(pooled.shape[0], -(-count // multiple) * multiple)
        rows = keep_top(pooled.sum(1), count)
        return rows[:, None].expand_as(pooled).reshape(-1)
    count = min(pooled.shape[1], -(-count // multiple) * multiple)
    return torch.stack([keep_top(row, count) for row in pooled]).reshape(-1)
