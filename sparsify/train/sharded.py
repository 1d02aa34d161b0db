"""Tensors cut over processes (FSDP2's DTensor): their whole value, and this process's part of it."""

import sys
from typing import Any

import torch
from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the parts of every process; every process must ask for it."""
    sharded = _sharded(tensor)
    return tensor if sharded is None else sharded.full_tensor()


def part(tensor: Tensor) -> Tensor:
    """What this process holds, a view: changing it changes the tensor."""
    sharded = _sharded(tensor)
    return tensor if sharded is None else sharded.to_local()


def part_like(value: Tensor, other: Tensor) -> Tensor:
    """The part of a whole tensor that lies where this process's part of `other` lies, a view.

    Element by element: a mask `[out, in]` cut like its weight keeps every entry beside its weight's. What
    is cut already is cut like `other`.
    """
    sharded = _sharded(other)
    if sharded is None or _sharded(value) is not None:
        return part(value)
    mesh = sharded.device_mesh
    for dimension, placement in enumerate(sharded.placements):
        if placement.is_shard():
            pieces = torch.chunk(value, mesh.size(dimension), placement.dim)
            rank = mesh.get_local_rank(dimension)
            # torch.chunk may return fewer pieces than were asked for; the last ranks then hold none.
            empty = value.narrow(placement.dim, 0, 0)
            value = pieces[rank] if rank < len(pieces) else empty
    return value


def is_cut(tensor: Tensor) -> bool:
    """Whether every process holds a part of the tensor."""
    return _sharded(tensor) is not None


def from_part(value: Tensor, other: Tensor) -> Tensor:
    """A tensor like `other` of which each process gives the part that it holds of that; nothing is sent."""
    sharded = _sharded(other)
    if sharded is None:
        return value
    found: Tensor = type(sharded).from_local(
        value,
        sharded.device_mesh,
        sharded.placements,
        run_check=False,
        shape=sharded.shape,
        stride=sharded.stride(),
    )
    return found


def _sharded(tensor: Tensor) -> Any:
    """The tensor if it is a DTensor, else None; without the second that importing DTensor takes."""
    module = sys.modules.get("torch.distributed.tensor")
    return tensor if module is not None and isinstance(tensor, module.DTensor) else None
