"""merge-experts: the experts of a cluster, the same since choose-clusters, are stored once.

    numbers [tokens, k] of top-k   ->   clusters[numbers], below G         clusters [E]
    tensors of experts [E, ...]    ->   one of each cluster, [G, ...]

The router keeps its E rows: where a token has two experts of one cluster, their weights add up, so that
outputs stay up to rounding (exact sharing: gates `g S`, S one-hot `[E, G]`). Parameters fall, multiply-adds
do not: such a token passes its expert twice.
Source: UNCURL (2409.01483), one expert a cluster.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.axes.analysis import Router
from sparsify.ir.axes.mixture import expert_tensors
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.merged_experts import merge_experts
from sparsify.ir.program import Program
from sparsify.ir.views.linear import linears
from sparsify.select.kinds.experts import free_routers, targeted_routers
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
        for router in targeted_routers(program, linears(program)):
            expert_tensors(analysis, router)

    def rewrite(self, program: Program, context: Context) -> int:
        """Merge the experts of every router with clusters; returns how many routers there are."""
        planned = program.plan["clusters"]
        weights = [r.weight for r in free_routers(analyse(program)) if r.weight in planned]
        for weight in weights:
            (router,) = (r for r in analyse(program).routers if r.weight == weight)
            _merge(program, router, planned[weight])
        return len(weights)


def _merge(program: Program, router: Router, clusters: list[int]) -> None:
    size = router.axis.root().size
    if len(clusters) != size:
        raise OptionError(
            f"the clusters of @{router.weight} were chosen among {len(clusters)} experts, and it has {size}; "
            "put merge-experts right behind choose-clusters"
        )
    groups = members(clusters)
    tensors = {}
    for path, dim in expert_tensors(analyse(program), router).items():
        stored = program.tensor(path).detach().movedim(dim, 0)
        for group in groups:
            if any(not torch.equal(stored[group[0]], stored[other]) for other in group[1:]):
                raise OptionError(
                    f"the experts {', '.join(map(str, group))} of @{path} are no longer the same; "
                    "put merge-experts before what changes them"
                )
        kept = stored[[group[0] for group in groups]]
        tensors[path] = kept.movedim(0, dim).contiguous()
    device = program.tensor(router.weight).device
    merge_experts(program, router, torch.tensor(clusters, device=device), tensors)
