"""Rules of ops that route tokens to experts: top-k, sort, counts, products in groups.

    scores [n, E] -> topk -> numbers of experts -> sort, count -> one product a group of rows

An integer tensor may hold numbers of indices of an axis, its *domain*. Ops that know it keep the axis
free: what is removed is chosen by no token when its score is -inf, and counts of it are zero.
"""

from typing import Any

import torch
from torch import fx

from sparsify.ir.axes.analysis import Analysis, Axes, Router, over, place
from sparsify.ir.axes.axis import Axis, Conflict
from sparsify.ir.axes.rules.elementwise import Rule, overloads
from sparsify.ir.ops.grouped import GROUPED
from sparsify.ir.ops.op import opname
from sparsify.ir.ops.probe import probe_routes
from sparsify.ir.views.composition import composition_at

aten = torch.ops.aten
_SOFTMAX = frozenset(overloads("softmax.int _softmax.default"))
_SIGMOID = frozenset(overloads("sigmoid.default"))
_SQUEEZE = frozenset(overloads("squeeze.dim squeeze.dims"))
CASTS = frozenset(overloads("to.dtype _to_copy.default contiguous.default clone.default"))
# What numbers of indices stay numbers of indices through.
KEEPING = frozenset(
    [
        probe_routes,
        *overloads(
            """view.default reshape.default flatten.using_ints unsqueeze.default squeeze.dim
            transpose.int permute.default expand.default to.dtype _to_copy.default
            contiguous.default clone.default slice.Tensor"""
        ),
    ]
)


def topk(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> list[Axes]:
    """The largest entries along one dimension and their numbers."""
    axes = analysis.axes[args["self"]]
    if not isinstance(args["k"], int):
        raise Conflict("a number of entries that is known only at run time")
    dim = place(axes, args["dim"])
    axis = axes[dim]
    reason = over(node)
    axis.pin(reason)
    taken = analysis.fresh(args["k"], f"{opname(node)} at {node.name} takes so many")
    result = [*axes[:dim], taken, *axes[dim + 1 :]]
    analysis.part_domains[node] = [None, axis]
    if dim == len(axes) - 1 and args["largest"]:
        _record_router(analysis, node, args, axis)
    return [result, list(result)]


def _record_router(analysis: Analysis, node: fx.Node, args: dict[str, Any], axis: Axis) -> None:
    """Remember a top-k over the outputs of a linear map, with the ops that -inf passes through."""
    excuses = {over(node)}
    source, ranked, shares = args["self"], None, False
    while source.target in _PASSING or _is_shifted(source):
        if source.target in _SOFTMAX:
            shares = True
            excuses.add(over(source))
        elif source.target in _SIGMOID or _is_shifted(source):
            ranked = ranked or source
        source = source.args[1 if source.target in _MASKING else 0]
    if source.target is not aten.linear.default or not _only_ranked(source):
        return
    weight = composition_at(source.args[1])
    rows = analysis.axes[source.args[1]][0]
    if weight is not None and rows.root() is axis.root():
        # A bias lifts what a softmax has made 0.
        places = [source] if shares or ranked is None else []
        places += [] if ranked is None else [ranked]
        name, count = weight.weight, int(args["k"])
        found = Router(node, source, tuple(places), name, axis, count, frozenset(excuses))
        analysis.routers.append(found)


def _is_shifted(node: fx.Node) -> bool:
    """Whether a node adds a tensor of the program, one number an index."""
    if node.target is not aten.add.Tensor or len(node.args) != 2:
        return False
    bias: Any = node.args[1]
    if not isinstance(bias, fx.Node) or bias.meta["val"].dim() != 1:
        return False
    while bias.target in CASTS or bias.target in _SQUEEZE:
        bias = bias.args[0]
    return bool(bias.op == "get_attr")


def _only_ranked(scores: fx.Node) -> bool:
    """Whether nothing but a top-k, after softmax and the like, reads scores: -inf harms no one else.

    What is looked up by the numbers of a choice is read where it was chosen.
    """
    return all(
        user.target in (aten.topk.default, probe_routes)
        or user.target is aten.gather.default
        or ((user.target in _PASSING or _is_shifted(user)) and _only_ranked(user))
        for user in scores.users
    )


def look_up(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """`gather`: along one dimension entries by number, each row its own."""
    axes, numbers = analysis.axes[args["self"]], list(analysis.axes[args["index"]])
    dim = place(axes, args["dim"])
    domain = analysis.domains.get(args["index"])
    if domain is None:
        axes[dim].pin(f"looked up by {opname(node)} at {node.name}")
    else:
        analysis.tie(node, axes[dim], domain)
    for other, (one, two) in enumerate(zip(axes, numbers, strict=True)):
        if other != dim:
            analysis.tie(node, one, two)
    return numbers


def sort(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> list[Axes]:
    """Entries in order along one dimension, and where they stood."""
    axes = list(analysis.axes[args["self"]])
    axes[place(axes, args["dim"])].pin(over(node))
    analysis.part_domains[node] = [analysis.domains.get(args["self"]), None]
    return [axes, list(axes)]


def count(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """`histc` of numbers of indices, one bin an index: how often each occurs."""
    domain = analysis.domains.get(args["self"])
    if domain is None:
        return analysis.like(node.meta["val"], f"{node.name} counts along it")
    if (args["bins"], args["min"], args["max"]) != (domain.root().size, 0, domain.root().size - 1):
        raise Conflict("bins that are not one an index")
    analysis.counts.add(node)
    return [domain]


def cumulate(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Running sums along one dimension; where counts are zero, an index may go."""
    axes = list(analysis.axes[args["self"]])
    if args["self"] not in analysis.counts and axes:
        axes[args["dim"]].pin(over(node))
    return axes


def grouped(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """`y[n, out] = x[n, in] W[g(n), in, out]`, rows of one group together, ends `offs [g]`."""
    x, weight, ends, *others = args.values()
    if ends is None or any(value is not None for value in others):
        raise Conflict("a grouped product of another form")
    rows, groups = analysis.axes[x], analysis.axes[weight]
    if len(rows) != 2 or len(groups) != 3:
        raise Conflict("a grouped product of another form")
    analysis.tie(node, rows[1], groups[1])
    analysis.tie(node, analysis.axes[ends][0], groups[0])
    analysis.contract(node, x, rows[1], weight, 1)
    return [rows[0], groups[2]]


def put(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Entries replaced by number."""
    axes = list(analysis.axes[args["self"]])
    for dim, number in enumerate(args["indices"]):
        if number is not None:
            axes[dim].pin(f"looked up by {opname(node)} at {node.name}")
    if len(axes) != 1:
        raise Conflict("entries put into more than one dimension")
    return axes


_MASKING = frozenset(overloads("where.ScalarOther"))

# What stands between scores and the choice among them.
_PASSING = _SOFTMAX | _SIGMOID | CASTS | _MASKING

ROUTE: dict[object, Rule] = {
    **dict.fromkeys(overloads("gather.default"), look_up),
    **dict.fromkeys(overloads("topk.default"), topk),
    **dict.fromkeys(overloads("sort.default sort.stable"), sort),
    **dict.fromkeys(overloads("histc.default"), count),
    **dict.fromkeys(overloads("cumsum.default"), cumulate),
    **dict.fromkeys(overloads("index_put.default"), put),
    **dict.fromkeys(GROUPED, grouped),
}
