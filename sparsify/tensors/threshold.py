"""threshold: the k-th largest value of several tensors, exact, in bounded memory.

A radix selection over the bits of the numbers: 16 bits a round, one histogram a round, the
tensors read in chunks. Sorting or `kthvalue` over one 4096 x 11008 weight would hold 8-byte
indices for every entry, and over a whole model a second copy of it; this holds one chunk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from sparsify.errors import SparsifyError

CHUNK = 1 << 22
_DIGIT_BITS = 16
_DIGITS = 1 << _DIGIT_BITS
_INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


@dataclass(frozen=True)
class Cut:
    """Where the best `count` entries end.

    Args:
        value: the smallest value kept.
        ties: how many entries equal to the value are kept; every larger entry is.
        dtype: the dtype in which entries must be compared with the value.
    """

    value: float
    ties: int
    dtype: torch.dtype


def cut_at(tensors: Sequence[Tensor], count: int) -> Cut:
    """Find the `count`-th largest entry of all tensors together.

    Args:
        tensors: any shapes and real dtypes, read only.
        count: from 1 to the number of entries.

    Raises:
        SparsifyError: when an entry is NaN, which has no place in any order.
    """
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    width = torch.finfo(dtype).bits
    prefix: int | None = None
    left = count
    for shift in range(width - _DIGIT_BITS, -1, -_DIGIT_BITS):
        histogram = torch.zeros(_DIGITS, dtype=torch.int64)
        for tensor in tensors:
            for _, chunk in chunks(tensor, dtype):
                histogram += _count_digits(_ordered(chunk), shift, prefix)
        from_top = histogram.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_top, left))
        digit = _DIGITS - 1 - place
        left -= int(from_top[place] - histogram[digit])
        prefix = digit - _DIGITS // 2 if prefix is None else prefix * _DIGITS + digit
    assert prefix is not None  # every float has at least one digit
    key = torch.tensor(prefix, dtype=_INTEGER[dtype])
    return Cut(float(_flip_negative(key).view(dtype)), left, dtype)


def chunks(tensor: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """Walk the entries in order of index: `(start, flat chunk in dtype)`.

    Args:
        tensor: any shape.
        dtype: of the chunks.
    """
    flat = tensor.detach().reshape(-1)
    for start in range(0, len(flat), CHUNK):
        yield start, flat[start : start + CHUNK].to(dtype)


def _ordered(chunk: Tensor) -> Tensor:
    """Map floats [n] to signed integers [n] of the same width that sort the same way."""
    if chunk.isnan().any():
        raise SparsifyError(
            "a score is NaN, so nothing can be chosen; mend the weights or their statistics first"
        )
    # adding zero turns -0.0 into 0.0: two equal values must not differ in their bits
    return _flip_negative((chunk + 0.0).view(_INTEGER[chunk.dtype]))


def _flip_negative(bits: Tensor) -> Tensor:
    """Reverse the order of the negative half; its own inverse."""
    limits = torch.iinfo(bits.dtype)
    return bits ^ ((bits >> (limits.bits - 1)) & limits.max)


def _count_digits(keys: Tensor, shift: int, prefix: int | None) -> Tensor:
    """Count the 16-bit digits at `shift` of the keys [n] that begin with the prefix, on the CPU."""
    if prefix is None:  # the top digit carries the sign
        digits = (keys >> shift) + _DIGITS // 2
    else:
        digits = (keys[(keys >> (shift + _DIGIT_BITS)) == prefix] >> shift) & (_DIGITS - 1)
    return torch.bincount(digits, minlength=_DIGITS).cpu()
