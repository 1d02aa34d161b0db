"""packed_float: the blocks of docs/packed.md with float32 values.

A block of 8 rows is a run of chunks; a chunk holds P entries of every row: a word of indices for
each row, then P vectors of 8 values. With M = 4, P is 16 and an index takes 2 bits; with M = 8,
P is 8 and it takes 4, of which the highest is zero.
"""

import torch
from torch import Tensor

from sparsify.errors import DataError

ROWS = 8
WORDS = 4 * ROWS  # bytes of the index words of a chunk


def fields(m: int) -> int:
    """Return P, the entries of a row in a chunk.

    Args:
        m: columns of a group, 4 or 8.
    """
    return 16 if m == 4 else 8


def chunk_bytes(m: int) -> int:
    """Return the bytes of a chunk.

    Args:
        m: columns of a group, 4 or 8.
    """
    return WORDS + 4 * ROWS * fields(m)


def write(blocks: Tensor, values: Tensor, index: Tensor, m: int) -> None:
    """Write the entries of 8 rows into each block.

    Args:
        blocks: uint8 [blocks, block_bytes], written.
        values: the bits of float32 as int32 [8 blocks, entries].
        index: uint8, of the same shape.
        m: columns of a group, 4 or 8.
    """
    count, width = fields(m), 32 // fields(m)
    chunks = blocks.view(len(blocks), -1, chunk_bytes(m))
    # A byte of a word holds 8 / width indices, the first one lowest.
    parts = index.view(len(blocks), ROWS, -1, 4, 8 // width).permute(4, 0, 2, 1, 3)
    words = parts[0].clone()
    for field in range(1, 8 // width):
        words |= parts[field] << (width * field)
    chunks[..., :WORDS] = words.flatten(2)
    vectors = values.view(len(blocks), ROWS, -1, count).permute(0, 2, 3, 1).contiguous()
    chunks[..., WORDS:] = vectors.flatten(2).view(torch.uint8)


def read(blocks: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Read the entries of each block; the inverse of `write`.

    Args:
        blocks: uint8 [blocks, block_bytes].
        m: columns of a group, 4 or 8.

    Returns:
        Values, the bits of float32 as int32, and indices, uint8: both [8 blocks, entries].

    Raises:
        DataError: when an index is not below m.
    """
    count, width = fields(m), 32 // fields(m)
    chunks = blocks.view(len(blocks), -1, chunk_bytes(m))
    words = torch.unflatten(chunks[..., :WORDS], 2, (ROWS, 4))
    parts = [(words >> (width * field)) & ((1 << width) - 1) for field in range(8 // width)]
    index = torch.stack(parts, 4).flatten(3).transpose(1, 2).flatten(0, 1).flatten(1)
    if (index >= m).any():
        raise DataError(f"an index is {int(index.max())}, beyond the {m} columns of its group")
    # A copy always: bytes cut out of a file may begin anywhere, and wider numbers may not.
    stored = chunks[..., WORDS:].clone(memory_format=torch.contiguous_format).view(torch.int32)
    vectors = torch.unflatten(stored, 2, (count, ROWS))
    return vectors.permute(0, 3, 1, 2).flatten(2).flatten(0, 1), index
