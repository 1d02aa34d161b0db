"""Rules of convolutions, of products spelt by letters, and of tiling."""

from typing import Any

from torch import fx

from sparsify.ir.axes.analysis import Analysis, Axes, Contraction, of_rank, place
from sparsify.ir.axes.axis import Axis, Conflict, product
from sparsify.ir.axes.rules.elementwise import Rule, overloads
from sparsify.ir.ops.op import opname


def convolution(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """`y[..., out, places] = sum over in and a window of x[..., in, places] W[out, in, window]`.

    In as many groups as there are channels each is summed by itself, `W[channels, 1, window]`.
    """
    x, weight = list(analysis.axes[args["input"]]), analysis.axes[args["weight"]]
    window, apart = len(weight) - 2, args["groups"] > 1
    channels = x[-window - 1]
    if apart and not channels.root().size == weight[0].root().size == args["groups"]:
        raise Conflict("a convolution in groups of several channels")
    analysis.tie(node, channels, weight[0] if apart else weight[1])
    if apart and window == 1:
        analysis.mixing.append(node)
    if not apart:
        # Zeros would have to stand in the middle of x: no place for a mask on its last axis.
        analysis.contractions.append(Contraction(node, args["input"], channels, None, 0))
    if args["bias"] is not None:
        analysis.tie(node, analysis.axes[args["bias"]][0], weight[0])
    reason = f"window of {opname(node)} at {node.name}"
    for axis in (*weight[2:], *x[-window:]):
        axis.pin(reason)
    places = [analysis.fresh(size, reason) for size in node.meta["val"].shape[-window:]]
    return [*x[: -window - 1], weight[0], *places]


def einsum(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """A sum of products with a letter for each dimension: equal letters are one axis."""
    terms, arrow, result = args["equation"].replace(" ", "").partition("->")
    if not arrow or "." in terms:
        raise Conflict("an equation without letters for all dimensions")
    known: dict[str, Axis] = {}
    for letters, operand in zip(terms.split(","), args["tensors"], strict=True):
        for letter, axis in zip(letters, analysis.axes[operand], strict=True):
            first = known.setdefault(letter, axis)
            if first.root().size == 1:
                known[letter] = axis
            analysis.tie(node, first, axis)
    for letter in (letter for letter in known if letter not in result):
        x = args["tensors"][0]
        analysis.contractions.append(Contraction(node, x, known[letter], None, 0))
    return [known[letter] for letter in result]


def repeat(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """The whole tensor tiled along each dimension, new dimensions in front."""
    axes, times = analysis.axes[args["self"]], args["repeats"]
    reason = f"{opname(node)} at {node.name} makes it"
    lead = len(times) - len(axes)
    result: Axes = []
    for i, size in enumerate(node.meta["val"].shape):
        old = axes[i - lead] if i >= lead else Axis(1)
        if times[i] == 1:
            result.append(old)
        elif old.root().size == 1 or old.moves() or not isinstance(times[i], int):
            old.pin(reason)
            result.append(analysis.fresh(size, reason))
        else:
            result.append(product([analysis.fresh(times[i], reason), old]))
    return result


def pick(analysis: Analysis, node: fx.Node, args: dict[str, Any]) -> Axes:
    """`index_select`: entries of one dimension by number."""
    axes = list(analysis.axes[args["self"]])
    dim = place(axes, args["dim"])
    (position,) = of_rank(analysis.axes[args["index"]], 1)
    domain = analysis.domains.get(args["index"])
    if domain is None:
        axes[dim].pin(f"looked up by {opname(node)} at {node.name}")
    else:
        analysis.tie(node, axes[dim], domain)
    axes[dim] = position
    return axes


PRODUCT: dict[object, Rule] = {
    **dict.fromkeys(
        overloads("conv1d.default conv2d.default conv3d.default conv1d.padding conv2d.padding"),
        convolution,
    ),
    **dict.fromkeys(overloads("einsum.default"), einsum),
    **dict.fromkeys(overloads("repeat.default"), repeat),
    **dict.fromkeys(overloads("index_select.default"), pick),
}
