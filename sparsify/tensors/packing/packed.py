"""packed: N:M weights as one array of bytes, the layout of docs/packed.md, and back.

    W [out, in]                entries (value, column in its group)
    0 5 0 7 | 0 0 3 0  --2:4-->  (5, 1) (7, 3) | (0, 0) (3, 2)  --8 rows at a time-->  bytes

A zero of either sign is no nonzero. Zeros fill up a group that holds fewer than N of them: negative
zeros first, so that they survive where there is room, then those at the lowest columns. A negative
zero that finds no room comes back as zero.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sparsify.errors import DataError, SparsifyError
from sparsify.tensors.packing import packed_float, packed_rounded
from sparsify.tensors.packing.layout import CODES, ROWS, Layout, packable
from sparsify.tensors.packing.packed_entries import (
    INFINITY,
    SIGN,
    entries_of,
    first,
    nonzero,
    rows_of,
)
from sparsify.tensors.precision import check_finite, shape_of
from sparsify.tensors.quantize import dequantize

__all__ = ["Layout", "dense", "pack", "packable", "unpack"]

SLAB = 1 << 22  # dense weights handled at once: memory beyond the result stays small


def pack(weight: Tensor, layout: Layout, scales: Tensor | None = None) -> Tensor:
    """Pack a weight whose zeros are there; `unpack(pack(w, l, s), l)` gives `w` and `s`, bit for bit.

    Args:
        weight: W [out, in]: float32, or int8 codes when the values are rounded.
        layout: of the bytes.
        scales: float16 [out, groups] when the values are rounded (`W = scale * code`), else None.

    Returns:
        uint8 [nbytes].

    Raises:
        SparsifyError: when a dtype or shape is another, a value is NaN, a code out of range, a
            scale not finite, or a group holds more than N nonzeros (the first one is named).

    Source: docs/packed.md.
    """
    _check_weight(weight, layout)
    _check_scales(scales, layout)
    packed = torch.empty(layout.nbytes, dtype=torch.uint8, device=weight.device)
    blocks = packed.view(layout.blocks, layout.block_bytes)
    for begin, end in _slabs(layout):
        rows = slice(begin * ROWS, end * ROWS)
        slab = _padded(weight.detach()[rows], end - begin, layout.padded)
        slab = slab if layout.group else slab.view(torch.int32)
        strange = _strange(slab, layout, begin * ROWS)
        if strange is not None:
            raise SparsifyError(strange)
        _check_crowd(slab, layout, begin * ROWS)
        values, index = entries_of(slab, layout.n, layout.m)
        if scales is None:
            packed_float.write(blocks[begin:end], values, index, layout.m)
        else:
            part = _padded(scales.detach()[rows], end - begin, layout.groups)
            packed_rounded.write(
                blocks[begin:end], values, index, part, layout.m, layout.slots, layout.values
            )
    return packed


def unpack(packed: Tensor, layout: Layout) -> tuple[Tensor, Tensor | None]:
    """Unpack bytes; the inverse of `pack`.

    Args:
        packed: uint8 [nbytes].
        layout: of the bytes.

    Returns:
        W [out, in], float32 or int8 codes, and the scales, float16 [out, groups] or None.

    Raises:
        DataError: when the bytes are not as many, or such as `pack` never writes.

    Source: docs/packed.md.
    """
    if packed.dtype != torch.uint8 or shape_of(packed) != [layout.nbytes]:
        raise DataError(
            f"a packed weight {layout} is uint8 [{layout.nbytes}], "
            f"but {packed.dtype} {shape_of(packed)} came"
        )
    out, columns = layout.out_features, layout.in_features
    dtype = torch.int8 if layout.group else torch.float32
    weight = torch.empty(out, columns, dtype=dtype, device=packed.device)
    scales = torch.empty(out, layout.groups, dtype=torch.float16, device=packed.device)
    blocks = packed.contiguous().view(layout.blocks, layout.block_bytes)
    for begin, end in _slabs(layout):
        start, stop = begin * ROWS, min(out, end * ROWS)
        try:
            slab, part = _read(blocks[begin:end], layout, start)
        except DataError as error:
            raise DataError(
                f"a packed weight {layout} is damaged, or was packed for another layout: {error}"
            ) from None
        weight[start:stop] = slab[: stop - start, :columns].view(dtype)
        scales[start:stop] = part[: stop - start]
    return weight, scales if layout.group else None


def dense(packed: Tensor, layout: Layout) -> Tensor:
    """Unpack bytes into the weight they stand for: `W = scale * code`, or the float32 stored.

    Args:
        packed: uint8 [nbytes].
        layout: of the bytes.

    Returns:
        float32 [out, in].

    Raises:
        DataError: when the bytes are not as many, or such as `pack` never writes.
    """
    weight, scales = unpack(packed, layout)
    return weight if scales is None else dequantize(weight, scales, layout.group)


def _slabs(layout: Layout) -> Iterator[tuple[int, int]]:
    """Cut the blocks into runs `[begin, end)` of about `SLAB` dense weights."""
    step = max(1, SLAB // (ROWS * layout.padded))
    for begin in range(0, layout.blocks, step):
        yield begin, min(layout.blocks, begin + step)


def _padded(rows: Tensor, blocks: int, columns: int) -> Tensor:
    """Fill up rows and columns with zeros: [8 blocks, columns]."""
    full = rows.new_zeros(ROWS * blocks, columns)
    full[: rows.shape[0], : rows.shape[1]] = rows
    return full


def _check_weight(weight: Tensor, layout: Layout) -> None:
    dtype = torch.int8 if layout.group else torch.float32
    shape = [layout.out_features, layout.in_features]
    if weight.dtype != dtype or shape_of(weight) != shape:
        raise SparsifyError(
            f"packing {layout} takes a weight of {dtype} {shape}, "
            f"but {weight.dtype} {shape_of(weight)} came"
        )


def _check_scales(scales: Tensor | None, layout: Layout) -> None:
    if (scales is None) != (layout.group == 0):
        asked, found = ("no scales", "some") if layout.group == 0 else ("scales", "none")
        raise SparsifyError(f"packing {layout} takes {asked}, but {found} came")
    if scales is None:
        return
    shape = [layout.out_features, layout.groups]
    if scales.dtype != torch.float16 or shape_of(scales) != shape:
        raise SparsifyError(
            f"packing {layout} takes scales of torch.float16 {shape}, "
            f"but {scales.dtype} {shape_of(scales)} came"
        )
    check_finite(scales, "the tensor of scales")


def _check_crowd(rows: Tensor, layout: Layout, start: int) -> None:
    """Refuse a group of more than N nonzeros; `start` is the number of the first row."""
    count = nonzero(rows.view(len(rows), -1, layout.m)).sum(2, dtype=torch.int8)
    crowded = first(count > layout.n)
    if crowded:
        row, group = crowded
        raise SparsifyError(
            f"{_place(layout, start + row, group)} hold {int(count[row, group])} nonzeros, "
            f"{layout.pattern} allows {layout.n}"
        )


def _strange(rows: Tensor, layout: Layout, start: int) -> str | None:
    """Say which value cannot be stored: a NaN, or a code beyond the largest."""
    if not layout.group:
        found = first((rows & ~SIGN) > INFINITY)
        return f"row {start + found[0]}, column {found[1]} is NaN" if found else None
    limit = CODES[layout.values]
    found = first((rows < -limit) | (rows > limit))
    if not found:
        return None
    row, column = found
    return (
        f"row {start + row}, column {column} holds {int(rows[row, column])}, "
        f"{layout.values} codes go from -{limit} to {limit}"
    )


def _read(blocks: Tensor, layout: Layout, start: int) -> tuple[Tensor, Tensor]:
    """Read blocks into rows and scales, padding included; `start` is the number of the first row."""
    if layout.group:
        values, index, scales = packed_rounded.read(blocks, layout.m, layout.slots, layout.values)
    else:
        values, index = packed_float.read(blocks, layout.m)
        scales = values.new_zeros(len(values), 0, dtype=torch.float16)
    groups = index.view(len(index), -1, layout.n)
    fallen = first((groups[..., 1:] <= groups[..., :-1]).any(2))
    if fallen:
        raise DataError(f"{_place(layout, start + fallen[0], fallen[1])} have indices out of order")
    rows = rows_of(values, index, layout.n, layout.m)
    strange = _strange(rows, layout, start)
    if strange is not None:
        raise DataError(strange)
    if not scales.isfinite().all():
        raise DataError("a scale is NaN or infinite")
    rest = layout.out_features - start
    padding = (nonzero(rows[rest:]), nonzero(rows[:, layout.in_features :]), scales[rest:])
    if any(bool(part.any()) for part in padding):
        raise DataError("its padding is not zero")
    return rows, scales


def _place(layout: Layout, row: int, group: int) -> str:
    start = group * layout.m
    return f"row {row}, columns {start} to {min(start + layout.m, layout.in_features) - 1}"
