"""Rules of ops that only move or repeat elements: views, transposes, expands."""

from typing import Any

from torch import fx

from sparsify.ir.axes.analysis import Analysis, Axes, place
from sparsify.ir.axes.axis import Axis, Conflict, product, regroup
from sparsify.ir.axes.rules.elementwise import Rule, overloads
from sparsify.ir.ops.op import opname


def transpose(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Two dimensions change places."""
    axes = list(analysis.axes[args["self"]])
    i, j = place(axes, args["dim0"]), place(axes, args["dim1"])
    axes[i], axes[j] = axes[j], axes[i]
    return axes


def turn(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """All dimensions in reverse order."""
    return analysis.axes[args["self"]][::-1]


def permute(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Dimensions in a given order."""
    axes = analysis.axes[args["self"]]
    return [axes[dim] for dim in args["dims"]]


def unsqueeze(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """A new dimension of length 1."""
    axes = list(analysis.axes[args["self"]])
    axes.insert(args["dim"] % (len(axes) + 1), Axis(1))
    return axes


def squeeze(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """A dimension of length 1 goes away; an axis that could reach length 1 must not."""
    axes = list(analysis.axes[args["self"]])
    dims = args["dim"] if isinstance(args["dim"], list | tuple) else [args["dim"]]
    gone = {place(axes, dim) for dim in dims}
    for dim in gone:
        axes[dim].pin(f"squeeze at {node.name} would drop it at length 1")
    return [a for i, a in enumerate(axes) if i not in gone or a.root().size != 1]


def view(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Dimensions merged and split; each smallest run of dimensions that keeps its total apart."""
    before = list(analysis.axes[args["self"]])
    after = node.meta["val"].shape
    sizes = [analysis.length(size)[0] for size in after]
    if 0 in sizes:
        raise Conflict("an empty view")
    result: Axes = []
    for sources, targets in _runs(before, sizes):
        try:
            result += regroup(sources, targets)
        except Conflict:
            reason = f"{opname(node)} at {node.name} cuts across it"
            for axis in sources:
                axis.pin(reason)
            here = after[len(result) : len(result) + len(targets)]
            result += [analysis.fresh(size, reason) for size in here]
    _pin_computed(node, args.get("size", args.get("shape")), result)
    return result


def _runs(before: Axes, sizes: list[int]) -> list[tuple[Axes, list[int]]]:
    """Cut two size lists of one total into the shortest runs with equal totals."""
    runs: list[tuple[Axes, list[int]]] = []
    sources, targets = list(before), list(sizes)
    while sources or targets:
        run: tuple[Axes, list[int]] = ([], [])
        left = right = 1
        while True:
            if sources and (left < right or (left == right and not run[0])):
                run[0].append(sources.pop(0))
                left *= run[0][-1].root().size
            elif targets:
                run[1].append(targets.pop(0))
                right *= run[1][-1]
            elif sources:
                run[0].append(sources.pop(0))
                left *= run[0][-1].root().size
            if left == right or not (sources or targets):
                break
        runs.append(run)
    return runs


def _pin_computed(node: fx.Node, sizes: Any, axes: Axes) -> None:
    """A length that the graph computes at run time cannot be rewritten: pin it."""
    for size, axis in zip(sizes or [], axes, strict=False):
        if isinstance(size, fx.Node):
            axis.pin(f"{opname(node)} at {node.name} computes its length")


def flatten(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Neighbouring dimensions become one."""
    axes = analysis.axes[args["self"]]
    start, end = place(axes, args["start_dim"]), place(axes, args["end_dim"])
    merged = [axis for axis in axes[start : end + 1] if axis.root().size != 1]
    return [*axes[:start], product(merged), *axes[end + 1 :]]


def unflatten(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """One dimension becomes several."""
    axes = analysis.axes[args["self"]]
    dim = place(axes, args["dim"])
    count = len(args["sizes"])
    sizes = [analysis.length(s)[0] for s in node.meta["val"].shape[dim : dim + count]]
    parts = regroup([axes[dim]], sizes)
    _pin_computed(node, args["sizes"], parts)
    return [*axes[:dim], *parts, *axes[dim + 1 :]]


def expand(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Dimensions of length 1 repeated: each becomes a new axis of interchangeable copies."""
    axes = analysis.axes[args["self"]]
    shape = node.meta["val"].shape
    result = []
    for i, size in enumerate(shape):
        old = i - (len(shape) - len(axes))
        length, dynamic = analysis.length(size)
        if old >= 0 and axes[old].root().size == length:
            result.append(axes[old])
            continue
        axis = analysis.fresh(size)
        result.append(axis)
        if not dynamic:
            analysis.made.setdefault(node, []).append(axis)
    _pin_computed(node, args["size"], result)
    return result


def filled(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """One value everywhere: any index may go."""
    axes = analysis.like(node.meta["val"])
    _pin_computed(node, args["size"], axes)
    return axes


def repeat_interleave(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Each index of a dimension repeated a number of times."""
    axes = list(analysis.axes[args["self"]])
    if args["dim"] is None and len(axes) > 1:
        raise Conflict("repeat_interleave without a dimension")
    if not isinstance(args["repeats"], int):
        raise Conflict("a number of copies that is known only at run time")
    dim = place(axes, args["dim"] or 0)
    copies = analysis.fresh(args["repeats"])
    analysis.made[node] = [copies]
    axes[dim] = product([axis for axis in (axes[dim], copies) if axis.root().size != 1])
    return axes


SHAPE: dict[object, Rule] = {
    **dict.fromkeys(overloads("transpose.int swapaxes.default"), transpose),
    **dict.fromkeys(overloads("t.default numpy_T.default"), turn),
    **dict.fromkeys(overloads("permute.default"), permute),
    **dict.fromkeys(overloads("unsqueeze.default"), unsqueeze),
    **dict.fromkeys(overloads("squeeze.dim squeeze.dims"), squeeze),
    **dict.fromkeys(overloads("view.default reshape.default _unsafe_view.default"), view),
    **dict.fromkeys(overloads("flatten.using_ints"), flatten),
    **dict.fromkeys(overloads("unflatten.int"), unflatten),
    **dict.fromkeys(overloads("expand.default broadcast_to.default"), expand),
    **dict.fromkeys(
        overloads(
            """zeros.default ones.default full.default new_zeros.default new_ones.default
            new_full.default"""
        ),
        filled,
    ),
    **dict.fromkeys(overloads("repeat_interleave.self_int"), repeat_interleave),
}
