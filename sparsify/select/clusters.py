"""Clusters of the experts of a program: which belong together, and all of them made one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.errors import OptionError
from sparsify.ir.program import Program
from sparsify.select.mixture import Mixture
from sparsify.select.routes import Routes, routes_of
from sparsify.tensors import clusters as pure
from sparsify.tensors.masks import zeros_of


@dataclass(frozen=True)
class Clusters:
    """The clusters of a mixture: their `numbers` by expert, the core of each, and how experts were used."""

    mixture: Mixture
    numbers: list[int]
    cores: list[int]
    routes: Routes


def choose_clusters(
    program: Program,
    found: Sequence[Mixture],
    counts: Sequence[int],
    *,
    least: int,
    together: bool,
    first: bool,
    seed: int,
) -> list[Clusters]:
    """So many clusters in each mixture, or, `together`, their sum over all, where it costs least.

    `first` takes the first expert of a cluster as its core, not the most used one. No mixture is left with
    less than `least` clusters.
    """
    routes = [routes_of(program, mixture.router) for mixture in found]
    similar = [pure.similarity(known.gram) for known in routes]
    if together:
        costs = [
            [
                pure.spread(one, pure.cluster(one, count, seed), known.hits) if count else 0.0
                for count in range(len(one) + 1)
            ]
            for one, known in zip(similar, routes, strict=True)
        ]
        counts = pure.cheapest(costs, sum(counts), least)
    made = []
    for mixture, known, one, count in zip(found, routes, similar, counts, strict=True):
        numbers = pure.cluster(one, count, seed)
        hits = torch.zeros_like(known.hits) if first else known.hits
        made.append(Clusters(mixture, numbers, pure.cores(numbers, hits), known))
    return made


@torch.no_grad()
def merge(program: Program, clusters: Clusters) -> None:
    """Align the experts of each cluster with its core, and give all of them their mean by use."""
    mixture, hits = clusters.mixture, clusters.routes.hits.cpu()
    for group, core in zip(pure.members(clusters.numbers), clusters.cores, strict=True):
        if len(group) == 1:
            continue
        reference = mixture.rows(program, core)
        orders = {e: pure.aligned(reference, mixture.rows(program, e)) for e in group if e != core}
        for path in mixture.tensors:
            parts = [_in_order(program, mixture, path, expert, orders) for expert in group]
            mean = pure.merged(torch.stack(parts), hits[group])
            for expert in group:
                mixture.expert(program, path, expert).copy_(mean)


def _in_order(
    program: Program, mixture: Mixture, path: str, expert: int, orders: Mapping[int, Tensor]
) -> Tensor:
    part = mixture.expert(program, path, expert)
    return mixture.reordered(path, part, orders[expert]) if expert in orders else part


def counts_left(
    found: Sequence[Mixture], experts: int | None, sparsity: float | None, least: Sequence[int]
) -> list[int]:
    """How many clusters each mixture is to have; OptionError for too few or too many."""
    counts = []
    for mixture, lowest in zip(found, least, strict=True):
        size = mixture.size
        count = int(experts or 0) if sparsity is None else size - zeros_of(size, sparsity)
        if not lowest <= count <= size:
            asked = f"experts={experts}" if sparsity is None else f"sparsity={sparsity}"
            raise OptionError(
                f"{asked} would leave {count} of the {size} experts of @{mixture.router.weight}; "
                f"leave {lowest} to {size}"
            )
        counts.append(count)
    return counts
