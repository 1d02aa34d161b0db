"""Experts of clusters stored once: numbers of experts become numbers of clusters behind the router.

numbers   ->   cluster_of(numbers, clusters [E], G)        tensors of experts [E, ...]   ->   [G, ...]

Experts that are linears of their own get gates of clusters, and all but one of each cluster go:

    scatter(zeros [..., E], -1, numbers, v)   ->   scatter_add(zeros[..., :G], -1, cluster_of(numbers), v)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsify.ir.axes.analysis import Router, arguments
from sparsify.ir.axes.mixture import expert_tensors
from sparsify.ir.axes.separate_experts import rest_of_sum, separate_experts
from sparsify.ir.axes.separate_routers import SeparateRouter
from sparsify.ir.axes.shrink.choice import Choice
from sparsify.ir.axes.shrink.sizes import patch
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.feature import Feature
from sparsify.ir.graph import Writer, redirect, sources, sweep
from sparsify.ir.ops.cluster_of import cluster_of
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import expert_clusters
from sparsify.ir.types import propagate
from sparsify.ir.views.router import numbers_of

aten = torch.ops.aten


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


def merge_separate_experts(program: Program, router: SeparateRouter, clusters: Tensor) -> None:
    """Keep the first expert of each cluster, multiplied by the sum of the gates of its cluster.

    `clusters [E]` is the number of each expert's cluster, below G; gates become `[..., G]`.
    """
    experts = separate_experts(program, router)
    labels, count = clusters.tolist(), int(clusters.max()) + 1
    kept = {label: number for number, label in reversed(list(enumerate(labels)))}
    zeros, _, numbers, values = arguments(router.gates).values()
    writer = Writer(program, before=router.gates)
    read = writer.buffer(expert_clusters(router.weight), clusters)
    found = writer.call(cluster_of, numbers, read, count)
    empty = writer.call(aten.slice.Tensor, zeros, -1, 0, count)
    # Two choices of one cluster add up here.
    redirect(router.gates, writer.call(aten.scatter_add.default, empty, -1, found, values))
    for number, expert in enumerate(experts):
        label = labels[number]
        if kept[label] == number:
            _read_column(program, expert.column, label)
        else:
            _leave_out(program, expert.product)
    sweep(program)
    propagate(program)
    program.module.recompile()


def _read_column(program: Program, column: fx.Node, number: int) -> None:
    """Let a node that takes one column of the gates take another."""
    mixed, target = column.all_input_nodes[0], column.target
    place = (number, number + 1) if target is aten.slice.Tensor else (number,)
    assert callable(target)
    redirect(column, Writer(program, before=column).call(target, mixed, -1, *place))


def _leave_out(program: Program, product: fx.Node) -> None:
    """Take a product out of the sum that it goes into."""
    found = rest_of_sum(product)
    assert found is not None
    total, rest = found
    if total.target is aten.stack.default:
        dim = arguments(total)["dim"]
        redirect(total, Writer(program, before=total).call(aten.stack.default, rest, dim))
    else:
        redirect(total, rest[0])


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
