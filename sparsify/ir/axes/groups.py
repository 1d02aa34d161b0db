"""Groups: the leaves of a program's axes, what they are, where they live and who consumes them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import fx

from sparsify.ir.axes.analysis import Analysis, Contraction
from sparsify.ir.axes.axis import Axis
from sparsify.ir.axes.roles import Roles, roles
from sparsify.ir.axes.rules.compute import averaging, normalising

# Path of a tensor, dimension, number of the leaf in that dimension from left to right.
Key = tuple[str, int, int]


@dataclass(frozen=True)
class Member:
    """A dimension of a parameter or buffer that an axis lives in."""

    path: str
    dim: int
    axis: Axis = field(repr=False, compare=False)


@dataclass(frozen=True)
class Consumer:
    """An op that contracts an axis with a stored matrix; zeros in `x [..., size]` remove it.

    `weight` is the path of the matrix, `dim` its contracted dimension (1 for `[out, in]`).
    """

    node: fx.Node
    x: fx.Node
    weight: str
    dim: int
    size: int
    axis: Axis = field(repr=False, compare=False)


@dataclass(frozen=True)
class Group:
    """One axis that many tensors share.

    `kind` is one of channels, heads, kv, head_dim, rotary, experts, hidden, vocabulary, other. `pins`
    are sentences that say why no index may go; the group is prunable when there are none. At least
    `least` indices must stay.
    """

    kind: str
    size: int
    members: tuple[Member, ...]
    consumers: tuple[Consumer, ...]
    pins: tuple[str, ...]
    key: Key
    leaf: Axis = field(repr=False, compare=False)
    least: int = 1

    @property
    def prunable(self) -> bool:
        """Whether indices may be removed."""
        return not self.pins


@dataclass(frozen=True)
class Heads:
    """The query heads of an attention: head number = KV group * `rep_size` + place in the group.

    `kv` is None when one KV group serves all heads, `rep` when every head has its own. `members`
    hold whole query heads; the input features of each consumer are KV group, place, index in the
    head, in that order.
    """

    kv: Group | None
    rep: Group | None
    members: tuple[Member, ...]
    consumers: tuple[Consumer, ...]
    pins: tuple[str, ...]

    @property
    def kv_size(self) -> int:
        """The number of KV groups."""
        return 1 if self.kv is None else self.kv.size

    @property
    def rep_size(self) -> int:
        """The number of query heads per KV group."""
        return 1 if self.rep is None else self.rep.size

    @property
    def size(self) -> int:
        """The number of query heads."""
        return self.kv_size * self.rep_size

    @property
    def key(self) -> tuple[Key, ...]:
        """The keys of the axes that make the heads."""
        return tuple(part.key for part in (self.kv, self.rep) if part is not None)

    @property
    def prunable(self) -> bool:
        """Whether heads may be removed."""
        return not self.pins


def groups(analysis: Analysis) -> list[Group]:
    """Every axis that a matrix of parameters has, pinned ones too, in graph order."""
    return list(analysis.once("groups", _groups))


def _groups(analysis: Analysis) -> list[Group]:
    members = _members(analysis)
    consumers = _consumers(analysis)
    known = roles(analysis)
    routers = {router.axis.root(): router for router in analysis.routers}
    averaged = _averaged(analysis)
    result = []
    for leaf, (key, places) in members.items():
        if key is None or leaf.size < 2:
            continue
        eaters = tuple(consumers.get(leaf, []))
        kind = known.kind(leaf) or _plain_kind(known, leaf, places, eaters)
        # Means over the residual width are taken over what is kept of it.
        excuses, least = averaged.get(leaf, frozenset()) if kind == "hidden" else frozenset(), 1
        if leaf in routers:
            kind, excuses, least = "experts", routers[leaf].excuses, routers[leaf].k
        pins = tuple(pin for pin in leaf.pins if pin not in excuses)
        result.append(Group(kind, leaf.size, tuple(places), eaters, pins, key, leaf, least))
    return result


def _averaged(analysis: Analysis) -> dict[Axis, frozenset[str]]:
    """The pins of each leaf that are norms and means over it alone."""
    found: dict[Axis, set[str]] = {}
    for axis, node in analysis.averaged:
        found.setdefault(axis.root(), set()).update((normalising(node), averaging(node)))
    return {leaf: frozenset(pins) for leaf, pins in found.items()}


def heads(analysis: Analysis) -> list[Heads]:
    """One record for each set of query heads of more than one head, in graph order."""
    return list(analysis.once("heads", _all_heads))


def _all_heads(analysis: Analysis) -> list[Heads]:
    by_leaf = {group.leaf: group for group in groups(analysis)}
    result: dict[tuple[Axis | None, Axis | None], Heads] = {}
    for kv_leaf, rep_leaf in roles(analysis).head_pairs:
        kv = None if kv_leaf is None else by_leaf.get(kv_leaf)
        rep = None if rep_leaf is None else by_leaf.get(rep_leaf)
        if (kv, rep) != (None, None) and (kv_leaf, rep_leaf) not in result:
            result[kv_leaf, rep_leaf] = _heads(analysis, kv, rep)
    return list(result.values())


def _heads(analysis: Analysis, kv: Group | None, rep: Group | None) -> Heads:
    parts = [part for part in (kv, rep) if part is not None]
    whole = parts[-1]
    consumers = tuple(c for c in whole.consumers if all(c in part.consumers for part in parts))
    members = tuple(m for m in whole.members if all(m in part.members for part in parts))
    pins = list(dict.fromkeys(pin for part in parts for pin in part.pins))
    if kv is not None and rep is not None:
        pins += _apart(kv.leaf, rep)
    if not consumers:
        pins.append("no linear map takes the heads in")
    # A mask on the heads leaves there what a removed KV group would take away.
    alone = dict.fromkeys(c.weight for part in parts for c in part.consumers if c not in consumers)
    if consumers:
        pins += [f"@{weight} takes in KV groups for itself" for weight in alone]
    return Heads(kv, rep, members, consumers, tuple(pins))


def _apart(kv: Axis, rep: Group) -> Iterator[str]:
    """Why KV groups cannot keep different heads: a tensor does not store heads group by group."""
    for member in rep.members:
        if not adjacent(member.axis, kv, rep.leaf):
            yield f"'{member.path}' does not store its heads KV group by KV group"


def adjacent(axis: Axis, first: Axis, second: Axis) -> bool:
    """Whether each occurrence of the second leaf in an axis directly follows one of the first."""
    root = axis.root()
    if root.kind == "atomic":
        return root is not second.root()
    if root.kind == "sum":
        return all(adjacent(part, first, second) for part in root.parts)
    factors = root.factors()
    for before, factor in zip([None, *factors], factors, strict=False):
        follows = before is not None and before.root() is first.root()
        if factor.root() is second.root():
            if not follows:
                return False
        elif not adjacent(factor, first, second):
            return False
    return True


def _members(analysis: Analysis) -> dict[Axis, tuple[Key | None, list[Member]]]:
    """Each leaf's places, and its key: its first place in a parameter of two or more dimensions."""
    found: dict[Axis, tuple[Key | None, list[Member]]] = {}
    for path, axes in analysis.tensors.items():
        tensor = analysis.program.tensor(path)
        matrix = isinstance(tensor, torch.nn.Parameter) and tensor.dim() >= 2
        for dim, axis in enumerate(axes):
            for number, leaf in enumerate(axis.leaves()):
                key, places = found.setdefault(leaf, (None, []))
                if not places or (places[-1].path, places[-1].dim) != (path, dim):
                    places.append(Member(path, dim, axis))
                if matrix and key is None:
                    found[leaf] = ((path, dim, number), places)
    return found


def _consumers(analysis: Analysis) -> dict[Axis, list[Consumer]]:
    """The consumers of each leaf; none when zeros there would not remove all that the leaf does."""
    found: dict[Axis, list[Consumer]] = {}
    elsewhere: set[Axis] = set()
    for item in analysis.contractions:
        leaves = dict.fromkeys(item.axis.leaves())
        if item.weight is None:
            elsewhere.update(leaves)
            continue
        consumer = _consumer(item, item.weight)
        for leaf in leaves:
            found.setdefault(leaf, []).append(consumer)
    return {leaf: consumers for leaf, consumers in found.items() if leaf not in elsewhere}


def _consumer(item: Contraction, weight: str) -> Consumer:
    axis = item.axis.root()
    return Consumer(item.node, item.x, weight, item.dim, axis.size, axis)


def _plain_kind(
    known: Roles, leaf: Axis, places: Iterable[Member], consumers: Iterable[Consumer]
) -> str:
    """Channels join one matrix's outputs to another's inputs with something nonlinear between."""
    eaten = {(c.weight, c.dim) for c in consumers}
    produced = any((m.path, m.dim) not in eaten for m in places)
    # A factor of a wider input is a head or the like of an attention that was not recognised.
    alone = all(leaf in c.axis.addends() for c in consumers)
    channels = eaten and produced and alone and leaf not in known.inner
    return "channels" if channels else "other"
