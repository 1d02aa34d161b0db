"""The products of experts: one product a group of rows."""

from itertools import pairwise

from torch import Tensor

# By stored name: some of these ops exist only when their library is loaded.
GROUPED = ("transformers.grouped_mm_fallback.default", "aten._grouped_mm.default")
# Each matrix has rows of its own, all equally many: `y[e] = x[e] W[e]`.
BATCHED = ("aten.bmm.default",)


def rows_of_each(x: Tensor, ends: Tensor | None) -> list[slice | int]:
    """Where the rows that each expert multiplies stand in x.

    In `x [rows, in]` they are the ones up to its entry of `ends [experts]`; without ends they are its entry
    of `x [experts, rows, in]`.
    """
    if ends is None:
        return list(range(len(x)))
    return [slice(start, end) for start, end in pairwise([0, *ends.tolist()])]
