"""The structure of one tensor dimension, tied to other dimensions by union-find.

An axis is atomic, a *product* (what a view merges or splits: heads times head size) or a *sum*
(what cat and slice make: q, k and v side by side). Ties refine structure: tying 8 to 4 * 2 splits
the 8. A pin is a sentence that says why an axis must keep its size; it lies on the atomic parts,
the leaves.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

Kind = Literal["atomic", "product", "sum"]


class Conflict(Exception):
    """Two axes, or an axis and a size, that cannot be brought to one structure."""


class Axis:
    """One dimension of a tensor; `size` is its length (a large prime stands for a symbolic one)."""

    __slots__ = ("_parent", "dynamic", "kind", "parts", "pins", "size")

    def __init__(
        self,
        size: int,
        kind: Kind = "atomic",
        parts: Iterable["Axis"] = (),
        *,
        dynamic: bool = False,
    ) -> None:
        self.size = size
        self.kind: Kind = kind
        self.parts = list(parts)
        self.pins: dict[str, None] = {}
        self.dynamic = dynamic
        self._parent: Axis | None = None

    def __repr__(self) -> str:
        axis = self.root()
        if axis.kind == "atomic":
            return str(axis.size)
        return "(" + ("*" if axis.kind == "product" else "+").join(map(repr, axis.parts)) + ")"

    def root(self) -> "Axis":
        """The representative of everything tied to this axis."""
        axis = self
        while axis._parent is not None:
            if axis._parent._parent is not None:
                axis._parent = axis._parent._parent
            axis = axis._parent
        return axis

    def leaves(self) -> Iterator["Axis"]:
        """The atomic parts from left to right; a leaf that occurs twice comes twice."""
        axis = self.root()
        if axis.kind == "atomic":
            yield axis
        else:
            for part in axis.parts:
                yield from part.leaves()

    def factors(self) -> list["Axis"]:
        """The non-product axes, of more than one index each, whose product this is."""
        axis = self.root()
        if axis.size == 1:
            return []
        if axis.kind == "product":
            return [factor for part in axis.parts for factor in part.factors()]
        return [axis]

    def addends(self) -> list["Axis"]:
        """The non-sum axes whose concatenation this is."""
        axis = self.root()
        if axis.kind == "sum":
            return [addend for part in axis.parts for addend in part.addends()]
        return [axis]

    def pin(self, reason: str) -> None:
        """Forbid every leaf to lose an index."""
        for leaf in self.leaves():
            if leaf.size > 1:
                leaf.pins[reason] = None

    def moves(self) -> bool:
        """Whether a symbolic size takes part in this axis."""
        return any(leaf.dynamic for leaf in self.leaves())

    def _become(self, kind: Kind, parts: Sequence["Axis"]) -> None:
        """Turn a root into a product or sum; pins and symbolic size go down to the parts."""
        if self.kind == "atomic":
            for part in parts:
                part.dynamic = part.dynamic or self.dynamic
                for leaf in part.leaves():
                    leaf.pins.update(self.pins)
            self.pins = {}
        self.kind, self.parts = kind, list(parts)

    def _join(self, other: "Axis") -> None:
        """Let an axis stand for this one too."""
        self._parent = other
        for leaf in other.leaves():
            leaf.pins.update(self.pins)
            leaf.dynamic = leaf.dynamic or self.dynamic


def product(factors: Sequence[Axis]) -> Axis:
    """The axis of all index tuples, first factor slowest."""
    if len(factors) == 1:
        return factors[0]
    size = 1
    for factor in factors:
        size *= factor.size
    return Axis(size, "product", factors) if factors else Axis(1)


def concatenation(addends: Sequence[Axis]) -> Axis:
    """The axis of all indices of the addends, one addend after the other."""
    present = [addend for addend in addends if addend.root().size]
    if len(present) == 1:
        return present[0]
    return Axis(sum(a.root().size for a in present), "sum", present) if present else Axis(0)


def unify(one: Axis, other: Axis) -> None:
    """Tie two axes: from now on they lose the same indices.

    Raises Conflict when their sizes differ or their structures cannot be refined to a common one.
    """
    a, b = one.root(), other.root()
    if a is b:
        return
    if a.size != b.size:
        raise Conflict(f"{a!r} is not {b!r}")
    if b.kind == "atomic":
        a, b = b, a
    if a.kind == "atomic":
        a._join(b)
    else:
        _merge(a, b)


def _merge(a: Axis, b: Axis) -> None:
    """Tie two structured axes part by part."""
    if a.kind == b.kind == "product":
        _zip(a.factors(), b.factors(), Axis.factors, split_factor)
    else:
        _zip(a.addends(), b.addends(), Axis.addends, split_addend)
    a, b = a.root(), b.root()
    if a is not b:
        a._parent = b


def _zip(
    left: list[Axis],
    right: list[Axis],
    flat: Callable[[Axis], list[Axis]],
    split: Callable[[Axis, int], tuple[Axis, Axis]],
) -> None:
    """Tie two part lists of one total, splitting the larger of each pair of first parts."""
    while left and right:
        left[:1], right[:1] = flat(left[0]), flat(right[0])
        x, y = left[0], right[0]
        if x.size > y.size:
            left[:1] = split(x, y.size)
        elif y.size > x.size:
            right[:1] = split(y, x.size)
        else:
            unify(left.pop(0), right.pop(0))
    if left or right:
        raise Conflict("the parts of two axes have different totals")


def split_factor(axis: Axis, outer: int) -> tuple[Axis, Axis]:
    """See an axis as `outer * (size / outer)`.

    Raises Conflict when its structure has no such boundary.
    """
    root = axis.root()
    if outer == 0 or root.size % outer:
        raise Conflict(f"{root!r} is not {outer} times anything")
    if outer in (1, root.size):
        return (Axis(1), root) if outer == 1 else (root, Axis(1))
    if root.kind == "sum":
        _distribute(root, outer)
    elif root.kind == "atomic":
        root._become("product", [Axis(outer), Axis(root.size // outer)])
    first: list[Axis] = []
    rest, left = root.factors(), outer
    while left > 1:
        factor = rest.pop(0)
        if left % factor.size == 0:
            first.append(factor)
            left //= factor.size
        else:
            head, tail = split_factor(factor, left)
            first.append(head)
            rest.insert(0, tail)
            left = 1
    return product(first), product(rest)


def _distribute(root: Axis, outer: int) -> None:
    """Turn a sum of products with one inner size into a product: `a*m + b*m -> (a+b) * m`."""
    inner_size = root.size // outer
    outers, inner = [], None
    for addend in root.addends():
        if addend.size % inner_size:
            raise Conflict(f"{root!r} is not {outer} times anything")
        head, tail = split_factor(addend, addend.size // inner_size)
        outers.append(head)
        if inner is None:
            inner = tail
        else:
            unify(inner, tail)
    assert inner is not None
    root._become("product", [concatenation(outers), inner])


def split_addend(axis: Axis, first: int) -> tuple[Axis, Axis]:
    """See an axis as its first indices followed by the others.

    Raises Conflict when the boundary falls inside something that must stay whole.
    """
    root = axis.root()
    if not 0 < first < root.size:
        raise Conflict(f"{root!r} has no boundary at {first}")
    if root.kind == "product":
        _concatenate(root, first)
    elif root.kind == "atomic":
        if root.dynamic:
            raise Conflict("a symbolic axis is cut at a fixed place")
        root._become("sum", [Axis(first), Axis(root.size - first)])
    head: list[Axis] = []
    rest, left = root.addends(), first
    while left > 0:
        addend = rest.pop(0)
        if addend.size <= left:
            head.append(addend)
            left -= addend.size
        else:
            before, after = split_addend(addend, left)
            head.append(before)
            rest.insert(0, after)
            left = 0
    return concatenation(head), concatenation(rest)


def _concatenate(root: Axis, first: int) -> None:
    """Turn a product into a sum by cutting its slowest factor: `(a+b) * m -> a*m + b*m`."""
    slowest, *others = root.factors()
    inner = root.size // slowest.size
    if first % inner:
        raise Conflict(f"{root!r} has no boundary at {first}")
    before, after = split_addend(slowest, first // inner)
    parts = [product([*side.factors(), *others]) for side in (before, after)]
    root._become("sum", parts)


def take(axis: Axis, start: int, size: int) -> Axis:
    """The axis of the indices `start .. start + size`; raises Conflict as `split_addend` does."""
    if start:
        axis = split_addend(axis, start)[1]
    if axis.root().size > size:
        axis = split_addend(axis, size)[0]
    return axis


def regroup(axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
    """The dimensions of a view of given sizes; raises Conflict when factors do not line up."""
    rest = [factor for axis in axes for factor in axis.factors()]
    result = []
    for size in sizes:
        taken: list[Axis] = []
        left = size
        while left > 1:
            if not rest:
                raise Conflict("a view is larger than what it views")
            factor, *more = rest[0].factors()
            rest[:1] = [factor, *more]
            if left % factor.size:
                rest[:1] = split_factor(factor, left)
                continue
            taken.append(rest.pop(0))
            left //= factor.size
        result.append(product(taken))
    return result
