"""The batches of one rank, where several go through the same data."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from sparsify import ranks
from sparsify.data.sequences import Data, batches


def own_batches(data: Data, indices: Sequence[int], size: int) -> Iterator[dict[str, Tensor]]:
    """Of the batches of `batches` every n-th, n the number of ranks: all of them where there is one rank.

    Batches stay whole, so that what is made of each is what one process makes of it.
    """
    starts = ranks.own(range(0, len(indices), max(size, 1)))
    mine = [index for start in starts for index in indices[start : start + size]]
    # All batches but the last of all are full, and nobody has one behind that.
    return batches(data, mine, size)
