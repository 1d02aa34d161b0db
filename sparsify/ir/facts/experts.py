"""What a step reads of a program: experts that tokens are sent to, tables by their rows, all else whole."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from sparsify.errors import SparsifyError
from sparsify.ir.axes.analysis import Analysis, arguments
from sparsify.ir.axes.axis import Axis
from sparsify.ir.axes.walk import analyse
from sparsify.ir.graph import sources
from sparsify.ir.ops.cluster_of import cluster_of
from sparsify.ir.ops.grouped import GROUPED
from sparsify.ir.ops.packed_experts import ENDS
from sparsify.ir.program import Program
from sparsify.ir.views.embedding import tables
from sparsify.ir.views.packed import block_weights

aten = torch.ops.aten


@dataclass(frozen=True)
class ExpertSet:
    """The experts of one choice: `size` of them, of which a token is sent to `chosen`.

    `tensors` are the paths of all that they hold, weights and biases alike, `[size, ...]`; what the choice
    itself follows from, the router, is none of it.
    """

    size: int
    chosen: int
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class RowTable:
    """A table `[rows, ...]` that ids pick rows of, read by nothing else; `tensors` are its paths."""

    rows: int
    tensors: tuple[str, ...]


def expert_sets(program: Program) -> list[ExpertSet]:
    """The experts of every choice, in graph order; empty for a program without grouped products.

    A set is an axis that a top-k chooses from and that the matrices of a grouped product are stored along;
    an expert that is alone is a weight like others.
    Raises SparsifyError where experts are chosen in another way.
    """
    for node in program.graph.find_nodes(op="call_function", target=aten.split_with_sizes.default):
        if any(free_unbacked_symbols(part) for part in node.meta["val"]):
            raise SparsifyError(
                f"at {node.name} rows are split by sizes known only at run time, each part for weights of "
                "its own: which weights a token meets is not known; cost programs whose experts are stored "
                "together"
            )
    nodes = [node for node in program.graph.nodes if _is_grouped(node)]
    if not nodes:
        return []
    analysis = analyse(program)
    chosen = {axis.root(): node for node, axis in _choices(analysis)}
    sets: dict[Axis, ExpertSet] = {}
    for node in nodes:
        axis = analysis.axes[node.all_input_nodes[1]][0].root()
        if axis.size == 1:
            continue  # one expert alone is no choice: every token passes it
        if axis not in chosen:
            raise SparsifyError(
                f"at {node.name} experts are multiplied by that no top-k of the graph chooses: what a token "
                "costs is not known; cost programs whose routers end in a top-k"
            )
        if axis not in sets:
            sets[axis] = _expert_set(analysis, axis, chosen[axis])
    return list(sets.values())


def _is_grouped(node: fx.Node) -> bool:
    """Whether a node multiplies groups of rows by matrices, as they are or packed."""
    if node.target in ENDS:
        return node.args[ENDS[node.target]] is not None
    return str(node.target) in GROUPED


def row_tables(program: Program) -> list[RowTable]:
    """The tables of which a step reads a row an id, in graph order; one that is a head too is none."""
    found: list[tuple[fx.Node, tuple[str, ...]]] = []
    found += [(view.node, (view.weight,)) for view in tables(program)]
    found += [(v.node, (v.codes, v.scales)) for v in block_weights(program) if v.is_table]
    lookups = {node for node, _ in found}
    users = _users(program)
    alone = {
        paths: len(program.tensor(paths[0])) for _, paths in found if users[paths[0]] <= lookups
    }
    return [RowTable(rows, paths) for paths, rows in alone.items()]


def read_tensors(program: Program) -> list[str]:
    """The paths of all tensors that the graph reads, in graph order, each once."""
    return list(_users(program))


def _users(program: Program) -> dict[str, set[fx.Node]]:
    users: dict[str, set[fx.Node]] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr" and node.users:
            users.setdefault(str(node.target), set()).update(node.users)
    return users


def _choices(analysis: Analysis) -> Iterator[tuple[fx.Node, Axis]]:
    """Every top-k with the axis that it chooses from, or that of the clusters its numbers become."""
    for node, domains in analysis.part_domains.items():
        if node.target is aten.topk.default and domains[1] is not None:
            yield node, domains[1]
    for node, axis in analysis.domains.items():
        if node.target is cluster_of:
            choice = node
            while choice.target is not aten.topk.default:
                choice = choice.all_input_nodes[0]
            yield choice, axis


def _expert_set(analysis: Analysis, axis: Axis, choice: fx.Node) -> ExpertSet:
    routing = {str(node.target) for node in sources(choice) if node.op == "get_attr"}
    tensors = (
        path
        for path, axes in analysis.tensors.items()
        if axes and axes[0].root() is axis and path not in routing
    )
    return ExpertSet(axis.size, int(arguments(choice)["k"]), tuple(tensors))
