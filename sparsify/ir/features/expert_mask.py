"""Experts in the graph: the mask of a router, a boolean `[experts]` on its scores, or on what it ranks.

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
    """The mask of the experts of a router at its nodes; `weight` is the router's matrix `[experts, in]`."""

    weight: str
    path: str
    nodes: tuple[fx.Node, ...]


def expert_masks(program: Program) -> list[ExpertMask]:
    """Every mask of experts, in graph order."""
    found: dict[str, ExpertMask] = {}
    for node in program.graph.nodes:
        mask = node.args[0] if node.target is aten.where.ScalarOther else None
        if isinstance(mask, fx.Node) and mask.op == "get_attr":
            path = str(mask.target)
            weight = path.removesuffix(_SUFFIX)
            if weight != path and program.has(weight):
                before = found[path].nodes if path in found else ()
                found[path] = ExpertMask(weight, path, (*before, node))
    return list(found.values())


def add_expert_mask(program: Program, router: Router) -> None:
    """Set the scores of masked experts to -inf; all stay at first."""
    size = router.axis.root().size
    mask = torch.ones(size, dtype=torch.bool, device=program.tensor(router.weight).device)
    for place in router.places:
        writer = Writer(program, after=place)
        read = writer.buffer(group_mask(router.weight, "experts"), mask)
        redirect(place, writer.call(aten.where.ScalarOther, read, place, float("-inf")))


def drop_expert_mask(program: Program, mask: ExpertMask) -> None:
    """Let the program read the scores as they are."""
    for node in mask.nodes:
        _, scores = node.all_input_nodes
        redirect(node, scores)
    sweep(program)


def router_of(analysis: Analysis, weight: str) -> Router | None:
    """The router with a matrix."""
    return next((router for router in analysis.routers if router.weight == weight), None)


FEATURES = (Feature("mask.experts", (_SUFFIX,), expert_masks, drop_expert_mask),)
