"""Omission in the graph: where neurons are chosen and left out at run time, its insertion and removal.

The rewrite of the prune passes with indices that are known only while the graph runs: every tensor of a
group keeps the chosen neurons, and sizes written into the graph become sizes of what was chosen.
"""

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.errors import OptionError, SparsifyError
from sparsify.ir.axes.analysis import Analysis
from sparsify.ir.axes.axis import Axis
from sparsify.ir.axes.groups import Group, Heads
from sparsify.ir.axes.shrink.choice import numbers
from sparsify.ir.axes.shrink.runtime_sizes import RuntimeChoice
from sparsify.ir.axes.shrink.sizes import patch
from sparsify.ir.features.feature import Feature
from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.ops.kept_neurons import keep_rows, kept_neurons, zero_omitted
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import omission
from sparsify.ir.views.linear import Linear, linear_at, linears
from sparsify.tensors.omission import layout_of

aten = torch.ops.aten
Chooser = Callable[..., Tensor]
_SIZES = (aten.sym_size.int, operator.mul, operator.add, operator.floordiv)


@dataclass(frozen=True)
class Neurons:
    """The neurons of a coupled axis: `of` numbers them, `leaf` shrinks, as many stay in each of `groups`."""

    kind: str
    of: Group | Heads
    leaf: Axis
    size: int
    groups: int
    consumers: tuple[Any, ...]


@dataclass(frozen=True)
class Omission:
    """One place of a program where neurons are chosen; `path` is that of their numbers `[size]`."""

    node: fx.Node
    path: str
    size: int
    groups: int
    multiple: int


def neurons(found: Group | Heads, rule: str) -> Neurons:
    """The neurons of a group of channels, or of heads by a rule.

    `inside`: the same number of query heads in every KV group, keys and values stay; `groups`: whole KV
    groups. Where every head has its own keys, or all heads share them, each head is free under both.
    """
    if isinstance(found, Group):
        return Neurons("channels", found, found.leaf, found.size, 1, found.consumers)
    if found.kv is not None and (found.rep is None or rule == "groups"):
        return Neurons("heads", found.kv, found.kv.leaf, found.kv.size, 1, found.consumers)
    assert found.rep is not None
    return Neurons("heads", found, found.rep.leaf, found.size, found.kv_size, found.consumers)


def add_omission(
    program: Program,
    analysis: Analysis,
    chosen: Sequence[Neurons],
    *,
    metric: str,
    select: str,
    multiple: int,
    zero: bool,
) -> list[str]:
    """Insert the omission of every site, and the reasons for those that were left out.

    With `zero` neurons are multiplied by zero at the input of the linears that consume them, and
    nothing shrinks.
    """
    reasons: list[str] = []
    sizes: dict[Axis, tuple[fx.Node, Writer]] = {}
    places: dict[Axis, tuple[Neurons, fx.Node]] = {}
    for site in chosen:
        try:
            makers = _makers(program, analysis, site)
            node, writer = _choice(
                program, site, makers, metric, select, multiple if site.kind == "channels" else 1
            )
        except SparsifyError as error:
            reasons.append(f"{site.kind} at {_place(site)}: {error}")
            continue
        places[site.leaf] = (site, node)
        if not zero:
            size = writer.call(aten.sym_size.int, node, 0)
            per = site.size // site.leaf.size
            sizes[site.leaf] = (
                size if per == 1 else writer.call(operator.floordiv, size, per),
                writer,
            )
    if zero:
        for site, node in places.values():
            _zero(program, site, node)
    else:
        _gather(program, analysis, places)
        choice = RuntimeChoice(sizes)
        for node in list(program.graph.nodes):
            if node in analysis.axes or node in analysis.parts:
                target = node.target
                patch(analysis, node, choice)
                if node.target is not target:
                    raise OptionError(
                        f"{node.name} splits equal parts of which only some have neurons"
                    )
    program.module.recompile()
    return reasons


def omissions(program: Program) -> list[Omission]:
    """Every place where neurons are chosen, in graph order."""
    found = []
    for node in program.graph.nodes:
        if node.target is kept_neurons:
            _, every, _, _, _, _, _, groups, multiple = node.args
            path = str(every.target)
            size = int(program.tensor(path).numel())
            found.append(Omission(node, path, size, groups, multiple))
    return found


def drop_omissions(program: Program) -> int:
    """Take omission out of the program: the text is again what it was; returns the places."""
    found = omissions(program)
    made = {item.node for item in found}
    for node in list(program.graph.nodes):
        if node.target in (keep_rows, zero_omitted):
            redirect(node, node.args[0])
        elif node.target in _SIZES and any(a in made for a in node.all_input_nodes):
            made.add(node)
            size = node.meta["val"]
            for user in list(node.users):
                if user.target not in _SIZES:
                    _put_number(user, node, int(size))
    sweep(program)
    return len(found)


@contextlib.contextmanager
def choosing(program: Program, choosers: Mapping[fx.Node, Chooser]) -> Iterator[None]:
    """Other functions in place of `kept_neurons` inside the block; the text stays as it was."""
    try:
        for node, chooser in choosers.items():
            node.target = chooser
        program.module.recompile()
        yield
    finally:
        for node in choosers:
            node.target = kept_neurons
        program.module.recompile()


def _makers(program: Program, analysis: Analysis, site: Neurons) -> list[tuple[Linear, int]]:
    """The linears that make the neurons from one input, and the dimension of their weights.

    Raises OptionError when there are none, or the neurons are used before.
    """
    members = {(member.path, member.dim) for member in site.of.members}
    found: list[tuple[Linear, int]] = []
    for view in linears(program):
        dim = 1 if view.transposed else 0
        if (view.weight, dim) in members and (not found or view.x is found[0][0].x):
            found.append((view, dim))
    if not found:
        raise OptionError("no linear makes them from an input")
    order = {node: i for i, node in enumerate(program.graph.nodes)}
    first = min(order[node] for node in _touched(analysis, site))
    if first <= order[found[0][0].x]:
        raise OptionError("they are used before the input that they would be scored by")
    return found


def _touched(analysis: Analysis, site: Neurons) -> Iterator[fx.Node]:
    """Every node that computes with the neurons, the reads of tensors left out."""
    for node, axes in analysis.axes.items():
        if node.op == "call_function" and any(site.leaf in axis.leaves() for axis in axes):
            yield node
    for item in analysis.contractions:
        if site.leaf in item.axis.leaves():
            yield item.node


def _choice(
    program: Program,
    site: Neurons,
    makers: Sequence[tuple[Linear, int]],
    metric: str,
    select: str,
    multiple: int,
) -> tuple[fx.Node, Writer]:
    """The node that chooses, right behind the input, and a writer behind it."""
    x = makers[0][0].x
    layouts, dims, paths = [], [], []
    for view, dim in makers:
        axis = next(m.axis for m in site.of.members if (m.path, m.dim) == (view.weight, dim))
        layouts.append(layout_of(numbers(axis, site.of), site.size))
        dims.append(dim)
        paths.append(view.weight)
    writer = Writer(program, after=x)
    device = program.tensor(paths[0]).device
    every = writer.buffer(omission(paths[0]), torch.arange(site.size, device=device))
    weights = [writer.read(path) for path in paths]
    node = writer.call(
        kept_neurons, x, every, weights, layouts, dims, metric, select, site.groups, multiple
    )
    return node, writer


def _gather(
    program: Program, analysis: Analysis, places: Mapping[Axis, tuple[Neurons, fx.Node]]
) -> None:
    """Every tensor of the sites without the omitted neurons, wherever the graph reads it."""
    order = {node: i for i, node in enumerate(program.graph.nodes)}
    for node in [n for n in program.graph.nodes if n.op == "get_attr"]:
        for dim, axis in enumerate(analysis.tensors.get(str(node.target), [])):
            leaf = next((leaf for leaf in axis.leaves() if leaf in places), None)
            if leaf is None:
                continue
            site, kept = places[leaf]
            readers = [user for user in node.users if user.target is not kept_neurons]
            if not readers:
                continue
            layout = layout_of(numbers(axis, site.of), site.size)
            writer = Writer(program, before=min(readers, key=lambda n: order.get(n, 0)))
            rows = writer.call(keep_rows, node, kept, dim, layout)
            for reader in readers:
                reader.replace_input_with(node, rows)


def _zero(program: Program, site: Neurons, kept: fx.Node) -> None:
    for consumer in site.consumers:
        view = linear_at(program, consumer.node)
        if view is not None:
            layout = layout_of(numbers(consumer.axis, site.of), site.size)
            writer = Writer(program, before=view.node)
            zeroed = writer.call(zero_omitted, view.x, kept, layout)
            view.node.replace_input_with(view.x, zeroed)


def _place(site: Neurons) -> str:
    return next(iter(consumer.weight for consumer in site.consumers), "")


def _put_number(user: fx.Node, node: fx.Node, size: int) -> None:
    def swap(argument: fx.Node) -> Any:
        return size if argument is node else argument

    user.args = fx.node.map_arg(user.args, swap)
    user.kwargs = fx.node.map_arg(user.kwargs, swap)


FEATURES = (Feature("omission", (omission(""),), omissions),)
