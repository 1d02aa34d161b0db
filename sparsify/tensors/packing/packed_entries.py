"""packed_entries: rows of an N:M weight as their stored entries, each a value and an index, and back.

    0 5 0 7 | 0 0 3 0   -- 2:4 -->   values 5 7 | 0 3,  index 1 3 | 0 2

Float32 rows come as their bits (int32): nothing here computes with them, so nothing rounds.
"""

import torch
from torch import Tensor

SIGN = -(1 << 31)  # the bits of a float32 negative zero
INFINITY = 0x7F800000  # the bits of a float32 infinity; NaN lies beyond


def nonzero(rows: Tensor) -> Tensor:
    """Return where rows are not zero, of either sign.

    Args:
        rows: int8, or the bits of float32 as int32; any shape.
    """
    return rows != 0 if rows.dtype == torch.int8 else (rows & ~SIGN) != 0


def entries_of(rows: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    """Take exactly N entries of every M consecutive columns, in the order of the columns.

    Args:
        rows: [rows, columns], int8 or float32 bits, at most N nonzeros in each group.
        n: entries of a group.
        m: columns of a group.

    Returns:
        Values, of the dtype of the rows, and indices within the group, uint8: both
        [rows, columns / m * n].
    """
    groups = rows.view(len(rows), -1, m)
    keep = nonzero(groups)
    room = n - keep.sum(2, dtype=torch.int8)
    free = ~keep
    if rows.dtype != torch.int8:
        _fill(keep, free & (groups == SIGN), room)
    _fill(keep, free, room)
    column = torch.arange(m, dtype=torch.uint8, device=rows.device).expand(groups.shape)
    return groups[keep].view(len(rows), -1), column[keep].view(len(rows), -1)


def _fill(keep: Tensor, free: Tensor, room: Tensor) -> None:
    """Keep the lowest free columns of each group while it has room."""
    for column in range(keep.shape[2]):
        take = free[..., column] & ~keep[..., column] & (room > 0)
        keep[..., column] |= take
        room -= take.to(torch.int8)


def rows_of(values: Tensor, index: Tensor, n: int, m: int) -> Tensor:
    """Put entries back at their columns; the inverse of `entries_of`.

    Args:
        values: [rows, entries], any dtype.
        index: uint8 [rows, entries], below m and rising within each group.
        n: entries of a group.
        m: columns of a group.

    Returns:
        [rows, entries / n * m], of the dtype of the values; the rest is zero.
    """
    shape = (len(values), values.shape[1] // n, n)
    groups = values.new_zeros(shape[0], shape[1], m)
    groups.scatter_(2, index.view(shape).long(), values.view(shape))
    return groups.view(len(values), -1)


def first(found: Tensor) -> list[int] | None:
    """Return the place of the first True, rows from the top, or None.

    Args:
        found: boolean, any shape.
    """
    if not found.any():
        return None
    places: list[list[int]] = found.nonzero()[:1].tolist()
    return places[0]
