"""bits: boolean masks as bits, eight to a byte, and back.

Layout: entry i of the mask, counted row by row, is bit `i % 8` of byte `i // 8`, where bit 0 is
the one worth 1 (little-endian bit order). The bits after the last entry are 0.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsify.errors import DataError, SparsifyError
from sparsify.tensors.precision import shape_of


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a mask into bytes; `unpack_bits(pack_bits(m), m.shape)` is m.

    Args:
        mask: boolean, any shape.

    Returns:
        uint8 [ceil(numel / 8)].

    Raises:
        SparsifyError: when the mask is not boolean.
    """
    if mask.dtype != torch.bool:
        raise SparsifyError(f"the mask {shape_of(mask)} must be boolean, but it is {mask.dtype}")
    flat = mask.reshape(-1).to(torch.uint8)
    rows = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    packed = torch.zeros(len(rows), dtype=torch.uint8, device=mask.device)
    for bit in range(8):
        packed |= rows[:, bit] << bit
    return packed


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Unpack bytes into a mask; `pack_bits(unpack_bits(p, shape))` is p.

    Args:
        packed: uint8 [ceil(numel / 8)], numel the product of the shape.
        shape: of the mask, any.

    Returns:
        Boolean mask of the shape.

    Raises:
        DataError: when the bytes are not uint8, not as many as the shape needs, or the bits
            after the last entry are not 0: then they were packed for another shape or damaged.
    """
    size = math.prod(shape)
    needed = -(-size // 8)
    if packed.dtype != torch.uint8 or list(packed.shape) != [needed]:
        raise DataError(
            f"a packed mask of shape {list(shape)} is uint8 [{needed}], "
            f"but {packed.dtype} {shape_of(packed)} came"
        )
    rows = torch.empty(needed, 8, dtype=torch.bool, device=packed.device)
    for bit in range(8):
        rows[:, bit] = (packed >> bit) & 1
    flat = rows.view(-1)
    if flat[size:].any():
        raise DataError(
            f"a packed mask of shape {list(shape)} has bits set after its {size} entries: "
            "it was packed for another shape, or is damaged"
        )
    # A copy where bits are left over: what is written by its storage must fill it.
    return (flat if flat.numel() == size else flat[:size].clone()).reshape(list(shape))
