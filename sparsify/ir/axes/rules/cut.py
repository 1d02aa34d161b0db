"""Rules of ops that cut dimensions, pick from them, join or lengthen them."""

from typing import Any

from torch import fx

from sparsify.ir.axes.analysis import Analysis, Axes, place
from sparsify.ir.axes.axis import Axis, Conflict, concatenation, regroup, take
from sparsify.ir.axes.rules.elementwise import Rule, overloads
from sparsify.ir.ops.op import opname


def cut(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """`slice`: a range of one dimension, or one index of every few, as of pairs that stand side by side."""
    axes = list(analysis.axes[args["self"]])
    dim = place(axes, args["dim"])
    whole = axes[dim]
    size, dynamic = analysis.length(node.meta["val"].shape[dim])
    if size in (0, whole.root().size):
        axes[dim] = whole if size else Axis(0)
        return axes
    start = 0 if args["start"] is None else args["start"]
    step, length = args["step"], whole.root().size
    if (
        not (dynamic or whole.moves())
        and start in range(step)
        and step > 1
        and size * step == length
    ):
        axes[dim], every = regroup([whole], [size, step])
        every.pin(f"slice at {node.name} picks an index of it")
        return axes
    if dynamic or whole.moves() or step != 1 or not isinstance(start, int):
        reason = f"slice at {node.name} takes some of it"
        whole.pin(reason)
        axes[dim] = analysis.fresh(node.meta["val"].shape[dim], reason)
        return axes
    axes[dim] = take(whole, max(0, start + length) if start < 0 else start, size)
    return axes


def split(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> list[Axes]:
    """`split`, `split_with_sizes` and `chunk`: one dimension in consecutive pieces."""
    axes = analysis.axes[args["self"]]
    dim = place(axes, args["dim"])
    pieces: list[Axes] = []
    start = 0
    for value in node.meta["val"]:
        size = analysis.length(value.shape[dim])[0]
        piece = take(axes[dim], start, size)
        pieces.append([*axes[:dim], piece, *axes[dim + 1 :]])
        start += size
    return pieces


def select(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """One index of a dimension."""
    axes = list(analysis.axes[args["self"]])
    axes.pop(place(axes, args["dim"])).pin(f"select at {node.name} picks an index of it")
    return axes


def unbind(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> list[Axes]:
    """Every index of a dimension on its own."""
    axes = list(analysis.axes[args["self"]])
    axes.pop(place(axes, args["dim"])).pin(f"unbind at {node.name} picks its indices")
    return [list(axes) for _ in node.meta["val"]]


def cat(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Dimensions joined end to end."""
    operands = [analysis.axes[x] for x in args["tensors"]]
    operands = [o for o in operands if not (len(o) == 1 and o[0].root().size == 0)]
    if not operands:
        raise Conflict("nothing but empty tensors")
    dim = place(operands[0], args["dim"])
    for other in operands[1:]:
        for i, axis in enumerate(other):
            if i != dim:
                analysis.tie(node, operands[0][i], axis)
    result = list(operands[0])
    pieces = [o[dim] for o in operands]
    if any(piece.moves() for piece in pieces):
        result[dim] = analysis.fresh(node.meta["val"].shape[dim])
        for piece in pieces:
            piece.pin(f"cat at {node.name} joins it to an axis of run-time length")
    else:
        result[dim] = concatenation(pieces)
    return result


def stack(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Equal tensors side by side along a new dimension."""
    operands = [analysis.axes[x] for x in args["tensors"]]
    result = list(operands[0])
    for other in operands[1:]:
        for one, axis in zip(result, other, strict=True):
            analysis.tie(node, one, axis)
    reason = f"stack at {node.name} makes it"
    result.insert(args["dim"] % (len(result) + 1), analysis.fresh(len(operands), reason))
    return result


def pad(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """New entries at the ends of dimensions, last dimension first."""
    axes = list(analysis.axes[args["self"]])
    pads, shape = args["pad"], node.meta["val"].shape
    for back in range(1, len(pads) // 2 + 1):
        if any(amount != 0 for amount in pads[2 * back - 2 : 2 * back]):
            reason = f"{opname(node)} at {node.name} lengthens it"
            axes[-back].pin(reason)
            axes[-back] = analysis.fresh(shape[-back], reason)
    return axes


CUT: dict[object, Rule] = {
    **dict.fromkeys(overloads("slice.Tensor"), cut),
    **dict.fromkeys(
        overloads("split.Tensor split_with_sizes.default split.sizes chunk.default"), split
    ),
    **dict.fromkeys(overloads("select.int"), select),
    **dict.fromkeys(overloads("unbind.int"), unbind),
    **dict.fromkeys(overloads("cat.default concat.default"), cat),
    **dict.fromkeys(overloads("stack.default"), stack),
    **dict.fromkeys(overloads("pad.default constant_pad_nd.default"), pad),
}
