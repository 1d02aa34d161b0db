"""Experts: a mask on the scores of their router."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from sparsify.errors import OptionError
from sparsify.ir.axes.analysis import Analysis, Router
from sparsify.ir.axes.groups import Group, groups
from sparsify.ir.axes.separate_routers import SeparateRouter, separate_routers
from sparsify.ir.axes.shrink.keep import Keep
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.expert_mask import (
    add_expert_mask,
    drop_expert_mask,
    expert_masks,
    router_of,
)
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear
from sparsify.select.importance import OF_GRADIENTS
from sparsify.select.kinds.cut import cut
from sparsify.select.kinds.indices import choose_indices, keep_indices
from sparsify.select.kinds.kind import Choice, Kind
from sparsify.select.routes import routes_of

_RANKED = (
    "the experts of @{} are ranked by more than a softmax of its scores, which probes and clusters do not "
    "read; mask them, by another score than frequency"
)
AnyRouter = TypeVar("AnyRouter", bound=Router | SeparateRouter)


class Experts(Kind):
    """`scores  ->  where(mask, scores, -inf)`, mask `[experts]`, a target where the router is one."""

    name = family = "experts"
    scores = ("magnitude", "frequency", "router", *sorted(OF_GRADIENTS))
    of_statistics = frozenset({"frequency"})
    of_data = OF_GRADIENTS

    def check(self, program: Program, views: Sequence[Linear]) -> None:
        """Refuse where no expert may go, or no target is a router."""
        targeted_routers(program, views)

    def add(self, program: Program, views: Sequence[Linear]) -> int:
        """Mask the scores of every router among the targets."""
        found = targeted_routers(program, views)
        for router in found:
            add_expert_mask(program, router)
        return len(found)

    def choose(
        self, program: Program, names: Sequence[str], views: Sequence[Linear], choice: Choice
    ) -> int:
        """The same fraction at every router; at least as many stay as a token is sent to."""
        chosen = {view.weight for view in views}
        masks = [mask for mask in expert_masks(program) if mask.weight in chosen]
        if not masks:
            raise OptionError("no target is a router with a mask; widen the targets")
        of = _masked(program)
        found = {mask.path: of[mask.path] for mask in masks}
        if choice.by.name in _OF_ROUTERS:
            score = _OF_ROUTERS[choice.by.name]
            scores = [score(program, mask.weight) for mask in masks]
            return keep_indices(program, found, scores, choice.amount, self.name)
        return choose_indices(program, found, choice.by, choice.amount, self.name)

    def remove(self, program: Program) -> int:
        """Slice the matrices of experts and the rows of their routers; OptionError for too few."""
        keep = Keep()
        found = _masked(program)
        for path, group in found.items():
            keep.group(group, torch.nonzero(program.tensor(path)).flatten().tolist())
        cut(program, keep)
        for mask in expert_masks(program):
            drop_expert_mask(program, mask)
        return len(found)


def _hits(program: Program, weight: str) -> Tensor:
    """How often a router has sent a token to each expert, `[experts]`."""
    router = router_of(analyse(program), weight)
    assert router is not None
    if not router.by_softmax:
        raise OptionError(_RANKED.format(weight))
    return routes_of(program, router).hits


def _rows(program: Program, weight: str) -> Tensor:
    """The L2 norm of each expert's row of a router, `[experts]`."""
    norms: Tensor = torch.linalg.vector_norm(program.tensor(weight).detach(), dim=1)
    return norms


_OF_ROUTERS: Mapping[str, Callable[[Program, str], Tensor]] = {"frequency": _hits, "router": _rows}


def free_routers(analysis: Analysis) -> list[Router]:
    """The routers whose experts nothing pins, in graph order."""
    free = {group.leaf for group in groups(analysis) if group.kind == "experts" and group.prunable}
    return [router for router in analysis.routers if router.axis.root() in free]


def _masked(program: Program) -> dict[str, Group]:
    """The experts that have a mask, by its path, in graph order."""
    analysis = analyse(program)
    by_leaf = {group.leaf: group for group in groups(analysis)}
    found = {router.weight: by_leaf[router.axis.root()] for router in free_routers(analysis)}
    return {mask.path: found[mask.weight] for mask in expert_masks(program)}


def targeted_routers(program: Program, views: Sequence[Linear]) -> list[Router]:
    """The routers among some linears whose experts are free; OptionError when there is none."""
    found = free_routers(analyse(program))
    if not found and (apart := separate_routers(program)):
        raise OptionError(
            f"the experts of @{apart[0].weight} are linears of their own, and a mask leaves none of them "
            "out; merge them with choose-clusters"
        )
    return _among(found, views)


def mixing_routers(program: Program, views: Sequence[Linear]) -> list[Router | SeparateRouter]:
    """Those whose shares are a softmax, and those whose experts are linears of their own, unprunable."""
    free, apart = free_routers(analyse(program)), separate_routers(program)
    found: list[Router | SeparateRouter] = [router for router in free if router.by_softmax]
    found += apart
    if free and not found:
        raise OptionError(_RANKED.format(free[0].weight))
    return _among(found, views)


def _among(found: Sequence[AnyRouter], views: Sequence[Linear]) -> list[AnyRouter]:
    if not found:
        raise OptionError(
            "the program has no prunable experts; `sparsify-fx show MODEL --axes` says why"
        )
    chosen = {view.weight for view in views}
    targets = [router for router in found if router.weight in chosen]
    if not targets:
        raise OptionError(f"no target is a router, as @{found[0].weight} is")
    return targets
