"""Experts of clusters stored once: numbers of experts become numbers of clusters behind the router.

numbers   ->   cluster_of(numbers, clusters [E], G)        tensors of experts [E, ...]   ->   [G, ...]
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsify.ir.axes.analysis import Router
from sparsify.ir.axes.mixture import expert_tensors, sources
from sparsify.ir.axes.shrink.choice import Choice
from sparsify.ir.axes.shrink.sizes import patch
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.feature import Feature
from sparsify.ir.graph import Writer, redirect
from sparsify.ir.ops.cluster_of import cluster_of
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import expert_clusters
from sparsify.ir.types import propagate
from sparsify.ir.views.router import numbers_of


@dataclass(frozen=True)
class MergedExperts:
    """A look-up of clusters: `path` holds `[experts]` numbers below `count`."""

    node: fx.Node
    path: str
    count: int


def merged_experts(program: Program) -> list[MergedExperts]:
    """Every look-up of clusters, in graph order."""
    found = []
    for node in program.graph.find_nodes(op="call_function", target=cluster_of):
        count = node.args[2]
        assert isinstance(count, int)
        found.append(MergedExperts(node, str(node.all_input_nodes[1].target), count))
    return found


def merge_experts(
    program: Program, router: Router, clusters: Tensor, tensors: Mapping[str, Tensor]
) -> None:
    """Let a router's choice find the experts of clusters in their tensors `[G, ...]`, by path.

    `clusters [E]` is the number of each expert's cluster. Sizes behind the choice become G; what the choice
    follows from keeps E.
    """
    analysis = analyse(program)
    (count,) = {len(value) for value in tensors.values()}
    before = sources(router.node)
    choice = Choice({router.axis.root(): torch.arange(count)})
    for node in program.graph.nodes:
        if node not in before:
            patch(analysis, node, choice)
    for path, value in tensors.items():
        old = program.tensor(path)
        learns = old.requires_grad if isinstance(old, torch.nn.Parameter) else None
        program.put(path, value, trainable=learns)
    for numbers in numbers_of(router.node):
        writer = Writer(program, after=numbers)
        read = writer.buffer(expert_clusters(router.weight), clusters)
        redirect(numbers, writer.call(cluster_of, numbers, read, count))
    propagate(program)
    program.module.recompile()


def carry_merged_experts(made: Program, program: Program) -> None:
    """Merge the experts of the decode variant that are merged in the program."""
    paths = {item.path for item in merged_experts(program)}
    weights = [router.weight for router in analyse(made).routers]
    for weight in weights:
        path = expert_clusters(weight)
        if path in paths:
            analysis = analyse(made)
            (router,) = (router for router in analysis.routers if router.weight == weight)
            tensors = {name: program.tensor(name) for name in expert_tensors(analysis, router)}
            merge_experts(made, router, program.tensor(path), tensors)


FEATURES = (
    Feature(
        "merged-experts",
        (expert_clusters(""),),
        merged_experts,
        carry=carry_merged_experts,
    ),
)
