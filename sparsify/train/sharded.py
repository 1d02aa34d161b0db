"""Parameters cut over processes (FSDP2's DTensor): their whole value, and this process's part of it."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Shard


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the parts of every process; every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor) -> Tensor:
    """What this process holds, a view: changing it changes the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(value: Tensor, other: Tensor) -> Tensor:
    """The part of a whole tensor that lies where this process's part of `other` lies, a view.

    Element by element: a mask `[out, in]` cut like its weight keeps every entry beside its weight's.
    """
    if not isinstance(other, DTensor):
        return value
    for dimension, placement in enumerate(other.placements):
        if isinstance(placement, Shard):
            pieces = torch.chunk(value, other.device_mesh.size(dimension), placement.dim)
            rank = other.device_mesh.get_local_rank(dimension)
            # torch.chunk may return fewer pieces than were asked for; the last ranks then hold none.
            empty = value.narrow(placement.dim, 0, 0)
            value = pieces[rank] if rank < len(pieces) else empty
    return value
