"""Experts in the graph: the mask of a router, a boolean `[experts]` on its scores.

scores   ->   where(mask, scores, -inf)
"""

from dataclasses import dataclass

import torch
from torch import fx

from sparsify.ir.axes.analysis import Analysis, Router
from sparsify.ir.features.feature import Feature
from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import group_mask

aten = torch.ops.aten
_SUFFIX = group_mask("", "experts")


@dataclass(frozen=True)
class ExpertMask:
    """The mask of the experts of a router; `weight` is the router's matrix `[experts, in]`."""

    weight: str
    path: str
    node: fx.Node
    scores: fx.Node


def expert_masks(program: Program) -> list[ExpertMask]:
    """Every mask of experts, in graph order."""
    found = []
    for node in program.graph.nodes:
        mask = node.args[0] if node.target is aten.where.ScalarOther else None
        if isinstance(mask, fx.Node) and mask.op == "get_attr":
            path = str(mask.target)
            weight = path.removesuffix(_SUFFIX)
            if weight != path and program.has(weight):
                found.append(ExpertMask(weight, path, node, node.args[1]))
    return found


def add_expert_mask(program: Program, router: Router) -> None:
    """Set the scores of masked experts to -inf; all stay at first."""
    size = router.axis.root().size
    mask = torch.ones(size, dtype=torch.bool, device=program.tensor(router.weight).device)
    writer = Writer(program, after=router.scores)
    read = writer.buffer(group_mask(router.weight, "experts"), mask)
    masked = writer.call(aten.where.ScalarOther, read, router.scores, float("-inf"))
    redirect(router.scores, masked)


def drop_expert_mask(program: Program, mask: ExpertMask) -> None:
    """Let the program read the scores as they are."""
    redirect(mask.node, mask.scores)
    sweep(program)


def router_of(analysis: Analysis, weight: str) -> Router | None:
    """The router with a matrix."""
    return next((router for router in analysis.routers if router.weight == weight), None)


FEATURES = (Feature("mask.experts", (_SUFFIX,), expert_masks, drop_expert_mask),)
