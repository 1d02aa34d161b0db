"""Indexing by numbers that the code itself lists becomes a slice where they are evenly spaced."""

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.trace.replaced import replaced

aten = torch.ops.aten


def as_slices(module: fx.GraphModule) -> None:
    """`x[..., [4, 6], :]` becomes `x[..., 4:7:2, :]`; the numbers stand in the code and not in the model.

    Entries that are looked up by number are pinned; a slice of an axis is a part of it like any other.
    """
    kept = {path for path, _ in module.named_parameters()}
    kept |= {path for path, _ in module.named_buffers()}
    for node in list(module.graph.nodes):
        if node.target is not aten.index.Tensor:
            continue
        x, places = node.args
        chosen = [(dim, item) for dim, item in enumerate(places) if item is not None]
        if len(chosen) != 1:
            continue
        (dim, numbers), size = chosen[0], x.meta["val"].shape[chosen[0][0]]
        if numbers.op != "get_attr" or str(numbers.target) in kept or not isinstance(size, int):
            continue
        steps = _evenly(attrgetter(str(numbers.target))(module), size)
        if steps is not None:
            *most, step = steps
            replaced(node, aten.slice.Tensor, (x, dim, *(most if step == 1 else steps)))


def _evenly(numbers: Any, size: int) -> tuple[int, int, int] | None:
    """Start, end and step of numbers that rise evenly in an axis of `size`."""
    is_list = isinstance(numbers, Tensor) and numbers.dim() == 1 and len(numbers) > 0
    if not is_list or numbers.dtype not in (torch.int64, torch.int32):
        return None
    places = [number % size for number in numbers.tolist()]
    first, end = places[0], places[-1] + 1
    step = places[1] - first if len(places) > 1 else 1
    even = step > 0 and places == list(range(first, end, step))
    return (first, end, step) if even else None
