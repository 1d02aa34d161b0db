"""The target shape of a model: how much of each kind stays."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from sparsify.errors import OptionError
from sparsify.text.options import Options


@dataclass(frozen=True)
class Shape(Options):
    """How many layers stay, how many heads and channels in each, and how much of the residual width."""

    name: ClassVar[str] = "shape"
    layers: int | None = None
    heads: int | None = None
    channels: int | None = None
    hidden: int | None = None

    def sizes(self) -> dict[str, int]:
        """The kinds that are named, with their sizes."""
        named = {
            "layers": self.layers,
            "heads": self.heads,
            "channels": self.channels,
            "hidden": self.hidden,
        }
        return {kind: size for kind, size in named.items() if size is not None}


@dataclass(frozen=True)
class Learned(Shape):
    """Learn masks to a target shape with the weights, at a peak rate `lr` of their own (Sheared LLaMA).

    The sparsity asked for rises from 0 over a fraction `ramp` of the steps.
    """

    name: ClassVar[str] = "learned"
    lr: float = 1.0
    ramp: float = 0.2

    def check(self) -> None:
        """The rate and the ramp must make sense; OptionError."""
        if self.lr <= 0 or not 0 <= self.ramp <= 1:
            raise OptionError(
                f"{self} needs a positive lr, and a ramp that is a fraction of the steps, from 0 to 1"
            )


@dataclass(frozen=True)
class Heads:
    """Query heads and KV groups of every attention: how many there were, and how many are left."""

    queries: int
    groups: int
    queries_left: int
    groups_left: int

    def choices(self) -> Iterator[tuple[int, int]]:
        """Query heads and KV groups in every even step down from all, in the way of this one."""
        if self.groups_left == self.groups:
            each = (self.groups * n for n in range(1, self.queries // self.groups + 1))
            yield from ((n, self.groups) for n in each)
            return
        share = self.queries // self.groups
        yield from ((n * share, n) for n in range(1, self.groups + 1))
