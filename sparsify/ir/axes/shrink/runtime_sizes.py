"""Sizes of axes that are known only while the graph runs: nodes where a choice has numbers."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from sparsify.errors import OptionError
from sparsify.ir.axes.axis import Axis
from sparsify.ir.axes.shrink.choice import Choice
from sparsify.ir.graph import Writer


class RuntimeChoice(Choice):
    """How much stays of each leaf, by the node that tells; `patch` writes those nodes into sizes.

    `sizes` maps a leaf to the node of its length and to the writer that makes nodes right behind it.
    """

    def __init__(self, sizes: Mapping[Axis, tuple[fx.Node, Writer]]) -> None:
        super().__init__({leaf: torch.arange(leaf.size) for leaf in sizes})
        self._sizes = sizes
        self._known: dict[tuple[Any, ...], fx.Node] = {}

    def size(self, axis: Axis) -> Any:
        """The length of an axis: a number, or the node that computes it."""
        root = axis.root()
        if not self.touches(root):
            return root.size
        if root.kind == "atomic":
            return self._sizes[root][0]
        leaf = next(leaf for leaf in root.leaves() if leaf in self.leaves)
        combine = operator.add if root.kind == "sum" else operator.mul
        total: Any = None
        for part in root.parts:
            size = self.size(part)
            total = size if total is None else self._combine(leaf, combine, total, size)
        return total

    def below(self, axis: Axis, bound: int) -> Any:
        """How many kept indices lie below a bound.

        Raises OptionError when it cuts through what moves.
        """
        start, total = 0, None
        leaf = next(leaf for leaf in axis.leaves() if leaf in self.leaves)
        for part in axis.addends():
            end = start + part.root().size
            if end <= bound:
                size = self.size(part)
            elif bound <= start or not self.touches(part):
                size = max(0, bound - start)
            else:
                raise OptionError("a slice cuts through the neurons")
            total = size if total is None else self._combine(leaf, operator.add, total, size)
            start = end
        return total

    def _combine(self, leaf: Axis, how: Any, one: Any, other: Any) -> Any:
        if isinstance(one, int) and isinstance(other, int):
            return how(one, other)
        neutral = 1 if how is operator.mul else 0
        if neutral in (one, other):
            return other if one == neutral else one
        key = (how, one, other)
        if key not in self._known:
            self._known[key] = self._sizes[leaf][1].call(how, one, other)
        return self._known[key]
