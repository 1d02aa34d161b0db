"""The target shape of a model: how much of each kind stays."""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.engine.options import Options


@dataclass(frozen=True)
class Shape(Options):
    """How many layers stay, and how many heads and channels in each."""

    name: ClassVar[str] = "shape"
    layers: int | None = None
    heads: int | None = None
    channels: int | None = None

    def sizes(self) -> dict[str, int]:
        """The kinds that are named, with their sizes."""
        named = {"layers": self.layers, "heads": self.heads, "channels": self.channels}
        return {kind: size for kind, size in named.items() if size is not None}
