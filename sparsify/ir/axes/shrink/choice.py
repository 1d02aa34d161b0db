"""Index arithmetic over axis structures: mixed radix through products, offsets through sums."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparsify.errors import OptionError
from sparsify.ir.axes.axis import Axis
from sparsify.ir.axes.groups import Consumer, Group, Heads


@dataclass
class Choice:
    """What stays of each leaf.

    `leaves` maps a leaf to its kept indices. `joint` maps the leaf of KV groups to the leaf of
    query heads per group and a table `[kept groups, kept heads]` of the heads each group keeps.
    """

    leaves: dict[Axis, Tensor] = field(default_factory=dict)
    joint: dict[Axis, tuple[Axis, Tensor]] = field(default_factory=dict)

    def touches(self, axis: Axis) -> bool:
        """Whether an axis loses or reorders indices."""
        return any(leaf in self.leaves for leaf in axis.leaves())

    def size(self, axis: Axis) -> int:
        """The length of an axis after the choice."""
        root = axis.root()
        if root.kind == "atomic":
            return self.leaves[root].numel() if root in self.leaves else root.size
        sizes = [self.size(part) for part in root.parts]
        if root.kind == "sum":
            return sum(sizes)
        result = 1
        for size in sizes:
            result *= size
        return result

    def below(self, axis: Axis, bound: int) -> int:
        """How many kept indices of an axis lie below a bound."""
        return int((self.kept(axis) < bound).sum())

    def kept(self, axis: Axis) -> Tensor:
        """The kept indices `[size after]` of a whole axis, in order."""
        root = axis.root()
        if root.kind == "atomic":
            return self.leaves.get(root, torch.arange(root.size))
        if root.kind == "sum":
            return torch.cat([kept + start for start, kept in self._addends(root)])
        result = torch.zeros(1, dtype=torch.long)
        for width, kept in self._factors(root):
            result = (result[:, None] * width + kept[None, :]).reshape(-1)
        return result

    def _addends(self, root: Axis) -> Iterator[tuple[int, Tensor]]:
        start = 0
        for part in root.parts:
            yield start, self.kept(part)
            start += part.root().size

    def _factors(self, root: Axis) -> Iterator[tuple[int, Tensor]]:
        """Length and kept indices of each factor; a jointly chosen pair counts as one factor."""
        factors = root.factors()
        while factors:
            factor = factors.pop(0)
            rep, table = self.joint.get(factor, (None, None))
            if rep is not None and table is not None and factors and factors[0].root() is rep:
                factors.pop(0)
                groups = self.leaves[factor]
                yield factor.size * rep.size, (groups[:, None] * rep.size + table).reshape(-1)
            else:
                yield factor.size, self.kept(factor)


def place(axis: Axis, leaf: Axis) -> Tensor:
    """For each index of an axis `[size]` its index in a leaf; -1 where the leaf has no part in it.

    Raises OptionError when the leaf is two factors of one product.
    """
    root = axis.root()
    if root is leaf.root():
        return torch.arange(root.size)
    if root.kind == "sum":
        return torch.cat([place(part, leaf) for part in root.parts])
    result = torch.full((root.size,), -1)
    if root.kind == "atomic":
        return result
    found = False
    inner = root.size
    for factor in root.factors():
        inner //= factor.size
        digits = torch.arange(root.size) // inner % factor.size
        here = place(factor, leaf)[digits]
        if bool((here >= 0).any()):
            if found:
                raise OptionError("an axis is two factors of one product and cannot be scored")
            found, result = True, here
    return result


def numbers(axis: Axis, of: Group | Heads) -> Tensor:
    """For each index of an axis `[size]` its group or query head number; -1 for none."""
    if isinstance(of, Group):
        return place(axis, of.leaf)
    result = torch.zeros(axis.root().size, dtype=torch.long)
    nowhere = torch.zeros_like(result, dtype=torch.bool)
    for part in (of.kv, of.rep):
        if part is not None:
            here = place(axis, part.leaf)
            nowhere |= here < 0
            result = result * part.size + here
    return result.masked_fill(nowhere, -1)


def expand_index(consumer: Consumer, of: Group | Heads) -> Tensor:
    """For each input feature `[in]` of a consumer its group or query head number; -1 for none."""
    return numbers(consumer.axis, of)


def reduce(index: Tensor, values: Tensor, size: int) -> Tensor:
    """Sums `[size]` of the values `[in]` of each group; index `[in]`, -1 is left out."""
    inside = index >= 0
    result = values.new_zeros(size)
    return result.index_add_(0, index[inside].to(values.device), values[inside.to(values.device)])


def spread(index: Tensor, values: Tensor, fill: float | bool) -> Tensor:
    """The value of each feature's group `[in]` from values `[size]`; `fill` where index is -1."""
    index = index.to(values.device)
    return values[index.clamp_min(0)].masked_fill(index < 0, fill)


def group_scores(of: Group | Heads, path: str, dim: int, scores: Tensor) -> Tensor:
    """Scores summed over each group or query head, `[size]`.

    `scores` has the shape of the tensor at `path`, or is `[length of dim]`; `dim` is a dimension
    that the axis lives in. Raises OptionError when it does not live there or shapes disagree.
    """
    member = next((m for m in of.members if (m.path, m.dim) == (path, dim)), None)
    if member is None:
        raise OptionError(f"the axis {of.key} is not in dimension {dim} of '{path}'")
    if scores.dim() > 1:
        scores = scores.sum([d for d in range(scores.dim()) if d != dim % scores.dim()])
    index = numbers(member.axis, of)
    if scores.shape != index.shape:
        raise OptionError(
            f"dimension {dim} of '{path}' has {index.numel()} indices, the scores {scores.numel()}"
        )
    return reduce(index, scores, of.size)
