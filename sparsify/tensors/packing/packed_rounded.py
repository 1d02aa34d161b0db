"""packed_rounded: the blocks of docs/packed.md with int8 or int4 values and float16 scales.

A block of 8 rows is a run of scale groups. Four consecutive entries of the 8 rows make a slot of
32 bytes; a group holds its 8 scales, the index bits of all its slots, then their values.
"""

import torch
from torch import Tensor

from sparsify.errors import DataError

ROWS = 8
SCALES = 2 * ROWS  # bytes of the scales of a group
VECTOR = 4 * ROWS  # bytes of a slot


def group_bytes(m: int, slots: int, values: str) -> int:
    """Return the bytes of one scale group of a block.

    Args:
        m: columns of a pattern's group, 4 or 8.
        slots: of a scale group.
        values: "int8" or "int4".
    """
    return SCALES + VECTOR * sum(_vectors(m, slots, values))


def _vectors(m: int, slots: int, values: str) -> tuple[int, int, int]:
    """Return how many vectors hold low index bits, third index bits and values."""
    return (
        -(-slots // 4),
        -(-slots // 8) if m == 8 else 0,
        -(-slots // (2 if values == "int4" else 1)),
    )


def write(
    blocks: Tensor, codes: Tensor, index: Tensor, scales: Tensor, m: int, slots: int, values: str
) -> None:
    """Write the entries and scales of 8 rows into each block.

    Args:
        blocks: uint8 [blocks, block_bytes], written.
        codes: int8 [8 blocks, entries].
        index: uint8, of the same shape.
        scales: float16 [8 blocks, groups].
        m: columns of a pattern's group, 4 or 8.
        slots: of a scale group.
        values: "int8" or "int4".
    """
    groups = blocks.view(len(blocks), -1, group_bytes(m, slots, values))
    by_group = scales.view(len(blocks), ROWS, -1).transpose(1, 2).contiguous()
    index = _slots_of(index, len(blocks), slots)
    parts = [by_group.view(torch.uint8), _join(index & 3, 2)]
    if m == 8:
        parts.append(_join(index >> 2, 1))
    stored = _slots_of(codes, len(blocks), slots)
    if values == "int4":
        nibbles = torch.nn.functional.pad(stored, (0, 0, 0, slots % 2)) + 8
        parts.append(_join(nibbles.view(torch.uint8), 4))
    else:
        parts.append(stored.flatten(2).view(torch.uint8))
    groups.copy_(torch.cat(parts, 2))


def read(blocks: Tensor, m: int, slots: int, values: str) -> tuple[Tensor, Tensor, Tensor]:
    """Read the entries and scales of each block; the inverse of `write`.

    Args:
        blocks: uint8 [blocks, block_bytes].
        m: columns of a pattern's group, 4 or 8.
        slots: of a scale group.
        values: "int8" or "int4".

    Returns:
        Codes, int8, and indices, uint8, both [8 blocks, entries]; scales float16
        [8 blocks, groups].

    Raises:
        DataError: when bits that belong to no slot are set.
    """
    groups = blocks.view(len(blocks), -1, group_bytes(m, slots, values))
    low, high, stored = _vectors(m, slots, values)
    sizes = [SCALES, VECTOR * low, VECTOR * high, VECTOR * stored]
    head, first, third, tail = torch.split(groups, sizes, 2)
    index = _cut(first, 2, slots, 0)
    if m == 8:
        index = index | (_cut(third, 1, slots, 0) << 2)
    if values == "int4":
        codes = _cut(tail, 4, slots, 8).view(torch.int8) - 8
    else:
        codes = torch.unflatten(tail.contiguous().view(torch.int8), 2, (slots, VECTOR))
    # A copy always: bytes cut out of a file may begin anywhere, and wider numbers may not.
    scales = head.clone(memory_format=torch.contiguous_format).view(torch.float16)
    return _rows_of(codes), _rows_of(index), scales.transpose(1, 2).flatten(0, 1)


def _slots_of(entries: Tensor, blocks: int, slots: int) -> Tensor:
    """Order entries [8 blocks, entries] as [blocks, groups, slots, 32]."""
    parts = entries.view(blocks, ROWS, -1, slots, 4)
    return parts.permute(0, 2, 3, 1, 4).flatten(3)


def _rows_of(slots: Tensor) -> Tensor:
    """Order slots [blocks, groups, slots, 32] as [8 blocks, entries]."""
    parts = torch.unflatten(slots, 3, (ROWS, 4)).permute(0, 3, 1, 2, 4)
    return parts.flatten(2).flatten(0, 1)


def _join(slots: Tensor, width: int) -> Tensor:
    """Put slots [blocks, groups, slots, 32] side by side in the bits of vectors, the first lowest."""
    each = 8 // width
    count = slots.shape[2]
    vectors = slots.new_zeros(*slots.shape[:2], -(-count // each), VECTOR)
    for place in range(min(each, count)):
        part = slots[:, :, place::each]
        vectors[:, :, : part.shape[2]] |= part << (width * place)
    return vectors.flatten(2)


def _cut(vectors: Tensor, width: int, count: int, spare: int) -> Tensor:
    """Take slots [blocks, groups, count, 32] out of vectors; those beyond must hold `spare`."""
    each = 8 // width
    parts = torch.unflatten(vectors, 2, (-1, VECTOR))
    slots = torch.stack(
        [(parts >> (width * place)) & ((1 << width) - 1) for place in range(each)], 3
    )
    slots = slots.flatten(2, 3)
    if (slots[:, :, count:] != spare).any():
        raise DataError("bits are set that belong to no slot")
    return slots[:, :, :count]
