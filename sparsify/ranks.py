"""The processes of one run, numbered by rank: what each is to do, and sums over all of them.

All goes through the process group of torch's distributed package. Where there is none, there is one rank, and
every function is what it says of one. Every rank has to call the same functions in the same order.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from sparsify.errors import SparsifyError

T = TypeVar("T")

FAILED = "sparsify/failed"  # where ranks leave word in the store of the process group
_POLL = 0.02  # seconds between two looks of who waits for rank 0
_TURNS = itertools.count()


class LostRank(SparsifyError):
    """Another process of the run is gone."""

    def __init__(self) -> None:
        super().__init__(
            "another process of this run is gone: it was killed, or its machine was lost; the same command "
            "with --resume goes on"
        )


def count() -> int:
    """The number of ranks."""
    ready = distributed.is_available() and distributed.is_initialized()
    return int(distributed.get_world_size()) if ready else 1


def rank() -> int:
    """The number of this process, from 0."""
    return int(distributed.get_rank()) if count() > 1 else 0


def is_first() -> bool:
    """Whether this is rank 0, which alone writes."""
    return rank() == 0


def own(items: Sequence[T]) -> Sequence[T]:
    """Of some items those of this rank: every n-th, n the number of ranks."""
    return items[rank() :: count()]


def own_of(items: Iterable[T]) -> Iterator[T]:
    """The same of what can be gone through once."""
    return itertools.islice(items, rank(), None, count())


def add_up(*tensors: Tensor) -> None:
    """Put the sums over all ranks in the place of tensors, of equal shapes on each; all get the same bits."""
    if count() > 1:
        for tensor in tensors:
            # What lies between is not summed by every backend.
            whole = tensor.contiguous()
            distributed.all_reduce(whole)
            if whole is not tensor:
                tensor.copy_(whole)


def totals(*numbers: float) -> tuple[float, ...]:
    """The sums of numbers over all ranks, in float64."""
    if count() == 1:
        return numbers
    value = torch.tensor(numbers, dtype=torch.float64)
    distributed.all_reduce(value)
    return tuple(value.tolist())


def gathered(value: T) -> list[T]:
    """The values of all ranks, in their order; anything that pickles."""
    found: list[Any] = [value] * count()
    if count() > 1:
        distributed.all_gather_object(found, value)
    return found


def by_first(act: Callable[[], object]) -> None:
    """Have rank 0 do something, however long it takes, before any other rank goes on.

    Raises LostRank where a rank has failed meanwhile.
    """
    if count() == 1:
        act()
        return
    store = distributed.distributed_c10d._get_default_store()
    done = f"sparsify/done/{next(_TURNS)}"
    if is_first():
        act()
        store.set(done, "yes")
    while not store.check([done]):
        if store.check([FAILED]):
            raise LostRank
        time.sleep(_POLL)
    gathered(None)  # rank 0 may keep the store, and must not go before all have looked
