"""How far a long reading is, for those who want to show it."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

# Told how many are done, and of how many: before the first and after every step.
Watch = Callable[[int, int], None]
Item = TypeVar("Item")


def unwatched(done: int, total: int) -> None:
    """Nobody asks how far it is."""


def watched(items: Sequence[Item], watch: Watch, together: int = 1) -> Iterator[list[Item]]:
    """Items in order, some together; `watch` hears of those that were taken when more are asked for."""
    for start in range(0, len(items), together):
        watch(start, len(items))
        yield list(items[start : start + together])
    watch(len(items), len(items))
