"""Routers of experts that are linears of their own: all are computed, and gates, mostly zero, mix them.

    i = topk(linear(x, R) or a softmax of it, k)            R [E, d]
    g = scatter(zeros [..., E], -1, i, v)                   whatever v [..., k] is made of
    y = sum_e g[..., e:e+1] * expert_e(x)

Nothing is told by a name.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sparsify.ir.axes.analysis import arguments
from sparsify.ir.axes.rules.elementwise import overloads
from sparsify.ir.axes.rules.route import CASTS
from sparsify.ir.ops.probe import probe_routes
from sparsify.ir.program import Program
from sparsify.ir.views.linear import linear_at

aten = torch.ops.aten
_SCORING = CASTS | frozenset(overloads("softmax.int _softmax.default sigmoid.default"))
_EMPTY = frozenset(overloads("zeros_like.default zeros.default new_zeros.default"))
_COLUMN = frozenset(overloads("slice.Tensor select.int"))


@dataclass(frozen=True)
class SeparateRouter:
    """A choice of the `k` best of `size` experts that are linears of their own.

    `node` is the top-k, `scores` the linear map that it follows from, `weight` its matrix; `gates
    [..., size]` is the scatter, `mixed` it or a cast of it, whose columns the experts are multiplied by.
    """

    node: fx.Node
    scores: fx.Node
    weight: str
    k: int
    size: int
    gates: fx.Node
    mixed: fx.Node


def separate_routers(program: Program) -> list[SeparateRouter]:
    """The routers whose gates are read column by column, in graph order."""
    nodes = program.graph.find_nodes(op="call_function", target=aten.scatter.src)
    return [found for node in nodes if (found := _router(program, node)) is not None]


def _router(program: Program, gates: fx.Node) -> SeparateRouter | None:
    empty, dim, numbers, _ = arguments(gates).values()
    if numbers.target is probe_routes:
        numbers = numbers.all_input_nodes[0]
    rank = gates.meta["val"].dim()
    if empty.target not in _EMPTY or numbers.target is not operator.getitem or numbers.args[1] != 1:
        return None
    choice: Any = numbers.args[0]
    if choice.target is not aten.topk.default or dim not in (-1, rank - 1):
        return None
    ranked = arguments(choice)
    scores = ranked["self"]
    while scores.target in _SCORING:
        scores = scores.args[0]
    view, size, mixed = linear_at(program, scores), gates.meta["val"].shape[-1], gates
    while len(mixed.users) == 1 and next(iter(mixed.users)).target in CASTS:
        (mixed,) = mixed.users
    if not isinstance(size, int) or not isinstance(ranked["k"], int) or len(mixed.users) < 2:
        return None
    if view is None or ranked["dim"] not in (-1, rank - 1) or not ranked["largest"]:
        return None
    apart = all(column_number(mixed, user) is not None for user in mixed.users)
    if not apart or scores.meta["val"].shape[-1] != size:
        return None
    return SeparateRouter(choice, scores, view.weight, ranked["k"], size, gates, mixed)


def column_number(mixed: fx.Node, column: fx.Node) -> int | None:
    """Which column of the gates a node takes; None where it does something else."""
    if column.target not in _COLUMN:
        return None
    size, rank = int(mixed.meta["val"].shape[-1]), mixed.meta["val"].dim()
    args: Any = arguments(column)
    if args["dim"] not in (-1, rank - 1):
        return None
    if column.target is aten.select.int:
        return args["index"] % size if isinstance(args["index"], int) else None
    start, end = args["start"] or 0, size if args["end"] is None else args["end"]
    if not isinstance(start, int) or not isinstance(end, int):
        return None
    taken = range(size)[start : end : args["step"]]
    return taken[0] if len(taken) == 1 else None
