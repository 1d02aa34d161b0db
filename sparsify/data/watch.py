"""How far a long reading is, for those who want to show it."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

# Told how much is done, and of how much: before the first and after every step.
Watch = Callable[[int, int], None]
Item = TypeVar("Item")


def unwatched(done: int, total: int) -> None:
    """Nobody asks how far it is."""


def watched(
    items: Iterable[Item],
    watch: Watch,
    together: int = 1,
    *,
    total: int,
    size: Callable[[Item], int] = lambda item: 1,
) -> Iterator[list[Item]]:
    """Items in order, some together; `watch` hears of those that were taken when more are asked for.

    `size` is how much of `total` an item is; where the sum comes to another figure, that is the whole.
    """
    left, done = iter(items), 0
    while some := list(islice(left, together)):
        watch(min(done, total), total)
        yield some
        done += sum(map(size, some))
    watch(done, done)
