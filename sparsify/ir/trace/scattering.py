"""What a tensor becomes when one of its views is written: the inverse of every op that only looks."""

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

aten = torch.ops.aten

_SCATTERS = {
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.select.int: aten.select_scatter.default,
    aten.diagonal.default: aten.diagonal_scatter.default,
}
_SWAPS = {aten.transpose.int, aten.t.default, aten.swapaxes.default, aten.swapdims.default}
_OPPOSITES = {
    aten.view_as_real.default: aten.view_as_complex.default,
    aten.view_as_complex.default: aten.view_as_real.default,
}
# Ops that keep the order of the elements and change the shape alone.
_RESHAPES = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.view_as.default,
    aten.reshape_as.default, aten.flatten.using_ints, aten.unflatten.int, aten.unsqueeze.default,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.ravel.default,
    aten.unsqueeze_.default, aten.squeeze_.default, aten.squeeze_.dim, aten.squeeze_.dims,
}  # fmt: skip
# Ops that move elements about; where each one went is asked of a tensor of positions.
_MOVES = {
    aten.permute.default, aten.movedim.int, aten.movedim.intlist, aten.moveaxis.int,
    aten.moveaxis.intlist, aten.narrow.default, aten.narrow.Tensor, aten.unfold.default,
    aten.numpy_T.default, aten.mT.default, aten.adjoint.default,
}  # fmt: skip
_PIECES = {
    aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default,
    aten.tensor_split.sections, aten.tensor_split.indices,
}  # fmt: skip
# Ops that give back their input where they have nothing to do.
_SAME = {"alias", "detach", "contiguous", "to", "type_as", "expand", "expand_as", "broadcast_to"}


class NotFollowed(Exception):
    """A write that has no functional form here; the text says which."""


def scattered(graph: fx.Graph, view: fx.Node, old: fx.Node, value: Tensor, new: fx.Node) -> fx.Node:
    """The source of a view once the view is `new`; `old` holds the source before, typed `value`.

    Raises NotFollowed for a view that has no inverse.
    """
    target, rest, seen = view.target, view.args[1:], view.meta["val"]
    if target in _SCATTERS:
        return graph.call_function(_SCATTERS[target], (old, new, *rest), dict(view.kwargs))
    if target in _SWAPS:
        return graph.call_function(target, (new, *rest))
    if target in _OPPOSITES:
        return graph.call_function(_OPPOSITES[target], (new,))
    if target in _RESHAPES:
        return graph.call_function(aten.reshape.default, (new, sizes_of(graph, old, value)))
    if target in _MOVES:
        return _by_position(graph, view, old, value, new)
    if _name(target) in _SAME and seen.dtype == value.dtype and same_shape(seen, value):
        return graph.call_function(aten.alias.default, (new,))
    raise NotFollowed(f"writes through {target}, which cannot be undone")


def joined(graph: fx.Graph, pieces: fx.Node, handle: fx.Node, index: int, new: fx.Node) -> fx.Node:
    """The source of several views once one of them is `new`: all of them joined again."""
    parts = []
    for i, value in enumerate(handle.meta["val"]):
        part = new if i == index else graph.call_function(operator.getitem, (pieces, i))
        part.meta["val"] = value
        parts.append(part)
    if handle.target is aten.unbind.int:
        return graph.call_function(aten.stack.default, (parts, _along(handle, 1)))
    if handle.target in _PIECES:
        return graph.call_function(aten.cat.default, (parts, _along(handle, 2)))
    raise NotFollowed(f"writes through {handle.target}, which cannot be undone")


def sizes_of(graph: fx.Graph, node: fx.Node, value: Tensor) -> list[Any]:
    """The shape of a node as arguments: numbers, and nodes where it varies."""
    sizes: list[Any] = []
    shape: list[Any] = list(value.shape)
    for dim, size in enumerate(shape):
        if isinstance(size, int):
            sizes.append(size)
        else:
            asked = graph.call_function(aten.sym_size.int, (node, dim))
            asked.meta["val"] = size
            sizes.append(asked)
    return sizes


def same_shape(one: Tensor, other: Tensor) -> bool:
    """Whether two shapes are known to be equal."""
    return one.dim() == other.dim() and all(
        statically_known_true(a == b) for a, b in zip(one.shape, other.shape, strict=True)
    )


def _by_position(
    graph: fx.Graph, view: fx.Node, old: fx.Node, value: Tensor, new: fx.Node
) -> fx.Node:
    """Look at the positions 0, 1, ... as the view does, and put each new element where it came from."""

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return graph.call_function(target, args, kwargs)

    sizes = sizes_of(graph, old, value)
    flat = call(aten.reshape.default, old, [-1])
    ones = call(aten.ones_like.default, flat, dtype=torch.int64)
    counted = call(aten.sub.Tensor, call(aten.cumsum.default, ones, 0), 1)
    positions = call(aten.reshape.default, counted, sizes)
    seen = call(view.target, positions, *view.args[1:], **view.kwargs)
    where = call(aten.reshape.default, seen, [-1])
    written = call(aten.scatter.src, flat, 0, where, call(aten.reshape.default, new, [-1]))
    return call(aten.reshape.default, written, sizes)


def _name(target: Any) -> str:
    return str(target.overloadpacket.__name__)


def _along(node: fx.Node, index: int) -> Any:
    """The dimension a node cuts along."""
    return node.args[index] if len(node.args) > index else node.kwargs.get("dim", 0)
