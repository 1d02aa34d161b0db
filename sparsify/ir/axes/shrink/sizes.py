"""Size constants inside nodes, rewritten to what a choice leaves of the axes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from sparsify.ir.axes.analysis import Analysis, Axes, arguments
from sparsify.ir.axes.axis import Axis
from sparsify.ir.axes.rules.elementwise import overloads
from sparsify.ir.axes.shrink.choice import Choice

aten = torch.ops.aten
_END = 9223372036854775807

Patch = Callable[[Analysis, fx.Node, Choice], None]


def patch(analysis: Analysis, node: fx.Node, choice: Choice) -> None:
    """Rewrite the size constants of one node."""
    if node.op == "call_function" and node.target in PATCHES:
        PATCHES[node.target](analysis, node, choice)


def _sizes(analysis: Analysis, node: fx.Node, choice: Choice) -> None:
    """`view`, `reshape`, `expand`, `zeros`: the lengths of the result."""
    name = "shape" if node.target is aten.reshape.default else "size"
    _set_list(node, name, _resized(arguments(node)[name], analysis.axes[node], choice))


def _unflatten(analysis: Analysis, node: fx.Node, choice: Choice) -> None:
    given = arguments(node)
    axes = analysis.axes[node]
    start = given["dim"] % len(analysis.axes[given["self"]])
    parts = axes[start : start + len(given["sizes"])]
    _set_list(node, "sizes", _resized(given["sizes"], parts, choice))


def _norm(analysis: Analysis, node: fx.Node, choice: Choice) -> None:
    shape = arguments(node)["normalized_shape"]
    axes = analysis.axes[node][-len(shape) :]
    _set_list(node, "normalized_shape", _resized(shape, axes, choice))


def _repeat(analysis: Analysis, node: fx.Node, choice: Choice) -> None:
    (copies,) = analysis.made[node]
    if choice.touches(copies):
        _set(node, "repeats", choice.size(copies))


def _slice(analysis: Analysis, node: fx.Node, choice: Choice) -> None:
    given = arguments(node)
    whole = _cut_axis(analysis, given)
    if not choice.touches(whole):
        return
    size = whole.root().size
    if given["step"] != 1:  # one index of every few, to the end
        if isinstance(given["end"], int) and given["end"] != _END:
            _set(node, "end", choice.size(whole))
        return
    for name in ("start", "end"):
        bound = given[name]
        if isinstance(bound, int) and bound != _END:
            bound = max(0, min(size, bound + size if bound < 0 else bound))
            _set(node, name, choice.below(whole, bound))


def _count(analysis: Analysis, node: fx.Node, choice: Choice) -> None:
    """One bin an index."""
    (axis,) = analysis.axes[node]
    if choice.touches(axis):
        _set(node, "bins", choice.size(axis))
        _set(node, "max", choice.size(axis) - 1)


def _split(analysis: Analysis, node: fx.Node, choice: Choice) -> None:
    """Pieces that no longer are what one number said become a list of lengths."""
    given = arguments(node)
    if not choice.touches(_cut_axis(analysis, given)):
        return
    source, dim = given["self"], given["dim"]
    sizes = [choice.size(axes[dim % len(axes)]) for axes in analysis.parts[node]]
    equal = len(set(sizes)) == 1
    if node.target is aten.split.Tensor and equal:
        _set(node, "split_size", sizes[0])
    elif node.target is not aten.chunk.default or not equal:
        node.target = aten.split_with_sizes.default
        node.args, node.kwargs = (source, sizes, dim), {}


def _attention(analysis: Analysis, node: fx.Node, choice: Choice) -> None:
    """Grouped attention with as many groups as heads is plain attention."""
    given = arguments(node)
    query, key = (analysis.axes[given[name]][-3] for name in ("query", "key"))
    if given["enable_gqa"] and choice.size(query) == choice.size(key):
        node.kwargs = {k: v for k, v in node.kwargs.items() if k != "enable_gqa"}


def _cut_axis(analysis: Analysis, given: dict[str, Any]) -> Axis:
    axes: Axes = analysis.axes[given["self"]]
    dim: int = given["dim"]
    return axes[dim % len(axes)]


def _resized(sizes: list[Any], axes: Axes, choice: Choice) -> list[Any]:
    return [
        choice.size(axis) if isinstance(size, int) and size != -1 and choice.touches(axis) else size
        for size, axis in zip(sizes, axes, strict=True)
    ]


def _set_list(node: fx.Node, name: str, value: list[Any]) -> None:
    if value != list(arguments(node)[name]):
        _set(node, name, value)


def _set(node: fx.Node, name: str, value: Any) -> None:
    """Replace an argument by its name in the op's schema, wherever it stands."""
    assert isinstance(node.target, torch._ops.OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    position = names.index(name)
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


PATCHES: dict[object, Patch] = {
    **dict.fromkeys(
        overloads(
            """view.default reshape.default _unsafe_view.default expand.default
            broadcast_to.default zeros.default ones.default full.default new_zeros.default
            new_ones.default new_full.default"""
        ),
        _sizes,
    ),
    **dict.fromkeys(overloads("unflatten.int"), _unflatten),
    **dict.fromkeys(overloads("layer_norm.default rms_norm.default"), _norm),
    **dict.fromkeys(overloads("repeat_interleave.self_int"), _repeat),
    **dict.fromkeys(overloads("slice.Tensor"), _slice),
    **dict.fromkeys(overloads("histc.default"), _count),
    **dict.fromkeys(
        overloads("split.Tensor split.sizes split_with_sizes.default chunk.default"), _split
    ),
    **dict.fromkeys(overloads("scaled_dot_product_attention.default"), _attention),
}
