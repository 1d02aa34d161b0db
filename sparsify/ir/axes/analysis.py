"""What the forward walk knows: the axes of every value, and where axes are contracted."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import fx

from sparsify.ir.axes.axis import Axis, Conflict, unify
from sparsify.ir.ops.op import opname
from sparsify.ir.program import Program

Axes = list[Axis]
Found = TypeVar("Found")

BATCH_OR_LENGTH = "batch or length, known only at run time"


@dataclass(frozen=True)
class Contraction:
    """An op that sums over an axis of its operand `x`.

    `weight` is the path of the stored matrix it is multiplied with, `dim` the contracted dimension
    of that matrix; None when the other operand is an activation (attention), where `dim` means
    nothing.
    """

    node: fx.Node
    x: fx.Node
    axis: Axis
    weight: str | None
    dim: int


@dataclass(frozen=True)
class Attention:
    """An attention: head axes of queries, keys and values, and the two inner axes.

    `made` are the axes repeated on the way to the keys and values: query heads per KV group.
    """

    node: fx.Node
    query_heads: Axis
    key_heads: Axis
    key_size: Axis | None
    value_size: Axis
    made: tuple[Axis, ...]


@dataclass(frozen=True)
class Router:
    """A choice of the `k` best of `axis` for each row, by scores that a linear map makes.

    `scores` is the linear map, `weight` its matrix, one row an index of the axis. At `places`, the scores, a
    sigmoid of them, or a softmax of them with a bias as well, -inf leaves an index out, as its removal
    does, whatever the ops that gave the pins in `excuses` see.
    """

    node: fx.Node
    scores: fx.Node
    places: tuple[fx.Node, ...]
    weight: str
    axis: Axis
    k: int
    excuses: frozenset[str]

    @property
    def by_softmax(self) -> bool:
        """Whether shares follow from the scores alone, as of a softmax."""
        return self.places == (self.scores,)

    @property
    def size(self) -> int:
        """The number of experts."""
        return self.axis.root().size


@dataclass
class Analysis:
    """Axes of every tensor of a program, tied as its ops tie them.

    `tensors` maps the path of each parameter and buffer to its axes, `axes` each node, `inputs` the name
    of each input, `parts` each node with several outputs, `made` the axes that a node repeats (expand,
    repeat_interleave).
    `widths` are the feature axes of embeddings, `vocabularies` their looked-up axes. `domains` says
    which axis the numbers in an integer tensor are indices of, `counts` holds the nodes that count them.
    `mixing` are ops other than attention in which places along a sequence see each other.
    `averaged` are the ops that average over the last axis of their input, with that axis. `rules` are those
    of ATen's ops, for rules that lean on another's.
    """

    program: Program
    rules: Mapping[Any, Any] = field(default_factory=dict, repr=False)
    tensors: dict[str, Axes] = field(default_factory=dict)
    axes: dict[fx.Node, Axes] = field(default_factory=dict)
    inputs: dict[str, Axes] = field(default_factory=dict)
    parts: dict[fx.Node, list[Axes]] = field(default_factory=dict)
    made: dict[fx.Node, list[Axis]] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)
    sites: list[Attention] = field(default_factory=list)
    softmaxes: set[fx.Node] = field(default_factory=set)
    mixing: list[fx.Node] = field(default_factory=list)
    constant: set[fx.Node] = field(default_factory=set)
    widths: Axes = field(default_factory=list)
    vocabularies: Axes = field(default_factory=list)
    routers: list[Router] = field(default_factory=list)
    domains: dict[fx.Node, Axis] = field(default_factory=dict)
    part_domains: dict[fx.Node, list[Axis | None]] = field(default_factory=dict)
    counts: set[fx.Node] = field(default_factory=set)
    averaged: list[tuple[Axis, fx.Node]] = field(default_factory=list)
    _found: dict[str, Any] = field(default_factory=dict)
    _symbols: dict[Any, int] = field(default_factory=dict)
    _lengths: dict[Any, tuple[int, bool]] = field(default_factory=dict)

    def once(self, name: str, find: Callable[["Analysis"], Found]) -> Found:
        """What `find` says of the finished analysis, found the first time only; nobody may change it."""
        if name not in self._found:
            self._found[name] = find(self)
        return cast(Found, self._found[name])

    def length(self, size: int | torch.SymInt) -> tuple[int, bool]:
        """A size as an integer, and whether it is symbolic: each symbol counts as a large prime."""
        if isinstance(size, int):
            return size, False
        expression = size.node.expr
        if expression not in self._lengths:
            symbols = sorted(expression.free_symbols, key=str)
            for symbol in symbols:
                self._symbols.setdefault(symbol, prime(len(self._symbols)))
            value = expression.subs({symbol: self._symbols[symbol] for symbol in symbols})
            self._lengths[expression] = int(value), bool(symbols)
        return self._lengths[expression]

    def fresh(self, size: int | torch.SymInt, reason: str | None = None) -> Axis:
        """A new axis, pinned for a reason if one is given."""
        length, dynamic = self.length(size)
        axis = Axis(length, dynamic=dynamic)
        if dynamic:
            axis.pin(BATCH_OR_LENGTH)
        elif reason is not None:
            axis.pin(reason)
        return axis

    def like(self, value: torch.Tensor, reason: str | None = None) -> Axes:
        """New axes for every dimension of a value."""
        return [self.fresh(size, reason) for size in value.shape]

    def tie(self, node: fx.Node, one: Axis, other: Axis) -> None:
        """Unify two axes, or pin both when they cannot be lined up; length 1 broadcasts."""
        if one.root().size == 1 or other.root().size == 1:
            return
        try:
            unify(one, other)
        except Conflict:
            for axis in (one, other):
                axis.pin(f"{opname(node)} at {node.name} ties it to an axis of another structure")

    def contract(self, node: fx.Node, x: fx.Node, axis: Axis, operand: fx.Node, dim: int) -> None:
        """Record that `node` sums over `axis` of `x` against dimension `dim` of `operand`."""
        path = None
        if operand in self.constant and x not in self.constant:
            path = stored_matrix(self, operand)
        if path is not None:
            ours, theirs = self.axes[operand], self.tensors[path]
            same = [axis.root() for axis in ours] == [axis.root() for axis in theirs]
            turned = [axis.root() for axis in theirs].index(ours[dim].root())
            dim = dim % len(ours) if same else turned
        self.contractions.append(Contraction(node, x, axis, path, dim))


def stored_matrix(analysis: Analysis, operand: fx.Node) -> str | None:
    """The parameter a weight is composed from: first read of its own two axes, in either order."""
    ours = {axis.root() for axis in analysis.axes[operand]}
    queue, seen = [operand], {operand}
    while queue:
        node = queue.pop(0)
        if node.op == "get_attr":
            axes = analysis.tensors.get(str(node.target), [])
            stored = analysis.program.tensor(str(node.target))
            same = len(axes) == len(analysis.axes[operand]) >= 2
            matches = same and {axis.root() for axis in axes} == ours
            if matches and stored.is_floating_point():
                return str(node.target)
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                queue.append(source)
    return None


def place(axes: Axes, dim: int) -> int:
    """A dimension counted from the front; raises Conflict for a scalar, which has none."""
    if not axes:
        raise Conflict("a dimension of a scalar")
    return dim % len(axes)


def of_rank(axes: Axes, least: int) -> Axes:
    """The axes, if there are enough for a rule; raises Conflict where dimensions are missing."""
    if len(axes) < least:
        raise Conflict(f"{len(axes)} dimensions where the rule wants {least}")
    return axes


def over(node: fx.Node) -> str:
    """The pin of an axis that an op sees as a whole."""
    return f"{opname(node)} at {node.name} runs over it"


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a node by the names of its op's schema, in its order, defaults filled in."""
    names, values = _signature(node.target)
    bound = {**values, **dict(zip(names, node.args, strict=False)), **node.kwargs}
    return {name: bound[name] for name in names if name in bound}


@functools.cache
def _signature(op: torch._ops.OpOverload) -> tuple[tuple[str, ...], dict[str, Any]]:
    declared = op._schema.arguments
    defaults = {a.name: a.default_value for a in declared if a.has_default_value()}
    return tuple(a.name for a in declared), defaults


@functools.cache
def prime(number: int) -> int:
    """A prime above every size that occurs in a model, a new one for each number."""
    candidate = 1_000_003 if number == 0 else prime(number - 1) + 2
    while any(candidate % divisor == 0 for divisor in range(3, int(candidate**0.5) + 1, 2)):
        candidate += 2
    return candidate
