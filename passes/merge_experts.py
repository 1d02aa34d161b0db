"""merge-experts: the experts of a cluster, the same since choose-clusters, are stored once.

    numbers [tokens, k] of top-k   ->   clusters[numbers], below G         clusters [E]
    tensors of experts [E, ...]    ->   one of each cluster, [G, ...]

The router keeps its E rows: where a token has two experts of one cluster, their weights add up, so that
outputs stay up to rounding (exact sharing: gates `g S`, S one-hot `[E, G]`). Parameters fall, multiply-adds
do not: such a token passes its expert twice.

Where experts are linears of their own, all computed for every token, one of each cluster stays, and its gate
is the sum of those of its cluster. There multiply-adds fall too, G experts are computed in place of E:

    sum_e g[..., e:e+1] * expert_e(x)   ->   sum_c (g S)[..., c:c+1] * expert_c(x)

Source: UNCURL (2409.01483), one expert a cluster.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.axes.analysis import Router
from sparsify.ir.axes.mixture import expert_tensors
from sparsify.ir.axes.separate_experts import separate_experts
from sparsify.ir.axes.separate_routers import SeparateRouter
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.merged_experts import merge_experts, merge_separate_experts
from sparsify.ir.program import Program
from sparsify.ir.views.linear import linears
from sparsify.select.kinds.experts import mixing_routers
from sparsify.tensors.clusters import members


@dataclass(frozen=True)
class MergeExperts(Pass):
    """Store one expert of each cluster that choose-clusters has made."""

    name: ClassVar[str] = "merge-experts"
    moves: ClassVar[Moves] = ROUNDING

    def effect(self) -> Effect:
        """Needs and drops the clusters; a probe would take clusters for experts."""
        return effect(
            needs=["clusters"],
            sets=["merged-experts"],
            drops=["clusters"],
            bars=["probe", "omission"],
        )

    def check(self, program: Program) -> None:
        """There must be experts that can be told apart."""
        analysis = analyse(program)
        for router in mixing_routers(program, linears(program)):
            if isinstance(router, SeparateRouter):
                separate_experts(program, router)
            else:
                expert_tensors(analysis, router)

    def rewrite(self, program: Program, context: Context) -> int:
        """Merge the experts of every router with clusters; returns how many routers there are."""
        planned = program.plan["clusters"]
        found = mixing_routers(program, linears(program))
        weights = [router.weight for router in found if router.weight in planned]
        for weight in weights:
            views = [view for view in linears(program) if view.weight == weight]
            (router,) = mixing_routers(program, views)
            _merge(program, router, planned[weight])
        return len(weights)


def _merge(program: Program, router: Router | SeparateRouter, clusters: list[int]) -> None:
    if len(clusters) != router.size:
        raise OptionError(
            f"the clusters of @{router.weight} were chosen among {len(clusters)} experts, and it has "
            f"{router.size}; put merge-experts right behind choose-clusters"
        )
    groups = members(clusters)
    numbers = torch.tensor(clusters, device=program.tensor(router.weight).device)
    if isinstance(router, SeparateRouter):
        for paths in zip(*(e.paths for e in separate_experts(program, router)), strict=True):
            _check_same(paths[0], [program.tensor(path) for path in paths], groups)
        merge_separate_experts(program, router, numbers)
        return
    tensors = {}
    for path, dim in expert_tensors(analyse(program), router).items():
        stored = program.tensor(path).detach().movedim(dim, 0)
        _check_same(path, stored, groups)
        kept = stored[[group[0] for group in groups]]
        tensors[path] = kept.movedim(0, dim).contiguous()
    merge_experts(program, router, numbers, tensors)


def _check_same(path: str, stored: Sequence[Tensor] | Tensor, groups: list[list[int]]) -> None:
    """Each expert of a cluster must hold what the first one does."""
    for group in groups:
        if any(not torch.equal(stored[group[0]], stored[other]) for other in group[1:]):
            raise OptionError(
                f"the experts {', '.join(map(str, group))} of @{path} are no longer the same; "
                "put merge-experts before what changes them"
            )
