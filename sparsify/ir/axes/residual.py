"""Residual blocks: sums `x + f(x)` of a stream and what is computed from it, and runs of them.

    y = x + f(x)                 norm first: y can be replaced by x
    y = norm(x + f(x))           norm last: y, with its norm, can be replaced by x
    y = x + f(x) + g(x)          parallel: each term can be left out, y can be replaced by x

A layer is a run of blocks that begins where tokens see each other (attention, a scan, a convolution of single
channels along the sequence), as far as the next block that begins one.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx

from sparsify.ir.axes.analysis import Analysis
from sparsify.ir.axes.rules.elementwise import overloads
from sparsify.ir.ops.masked_norms import masked_layer_norm, masked_rms_norm
from sparsify.ir.tensor_names import feature_of

_ADD = torch.ops.aten.add.Tensor
_SCALED = (_ADD, torch.ops.aten.mul.Tensor)
# What may stand between a sum and the stream of the next block.
_TAIL = frozenset(
    (
        *overloads("layer_norm.default rms_norm.default dropout.default to.dtype"),
        masked_layer_norm,
        masked_rms_norm,
    )
)
_SELECT = torch.ops.aten.where.self
_RESHAPES = frozenset(overloads("view.default reshape.default"))


@dataclass(frozen=True)
class Block:
    """A part of the program that can be left out.

    `y`, computed from the stream `x`, can be replaced by `x`; with `user` it is one of several terms
    of a sum, and can be left out of that sum. `kind` is `layers` for a whole layer, `blocks` for one
    residual sum or term. `weights` are the paths of the matrices inside, in graph order, `last` the last
    one that is the model's own, by which a block is known before and after passes add others.
    """

    kind: str
    x: fx.Node
    y: fx.Node
    user: fx.Node | None
    weights: tuple[str, ...]
    last: str | None


@dataclass(frozen=True)
class Sum:
    """A residual sum `x + terms`; `y` is the stream of the next one."""

    x: fx.Node
    terms: tuple[fx.Node, ...]
    root: fx.Node
    y: fx.Node


def blocks(analysis: Analysis, kind: str) -> list[Block]:
    """The whole layers (`layers`), or the residual sums and terms (`blocks`), in graph order.

    Blocks that share all of their matrices with another are one block in several places: left out, as are
    sums that passes have added (branches beside a linear).
    """
    flow = flow_of(analysis)
    found = []
    if kind == "layers":
        for run in _layers(flow):
            y = _shaped_like(run[0].x, run[-1].y)
            if y is not None:
                found.append(flow.block(kind, run[0].x, y, None))
    else:
        for item in flow.sums:
            if len(item.terms) == 1:
                found.append(flow.block(kind, item.x, item.y, None))
            else:
                for term in item.terms:
                    (user,) = (u for u in term.users if u.target is _ADD)
                    found.append(flow.block(kind, item.x, term, user))
    last = [block.last for block in found]
    return [block for block in found if block.last is not None and last.count(block.last) == 1]


def terms_of(analysis: Analysis, block: Block) -> list[tuple[fx.Node, fx.Node]]:
    """The terms that residual sums inside a block add to the stream, each with the op that adds it."""
    flow = flow_of(analysis)
    inside = [item for item in flow.sums if flow.between(block.x, block.y, item.root)]
    terms = [term for item in inside for term in item.terms]
    return [(term, user) for term in terms for user in term.users if user.target is _ADD]


def streams(analysis: Analysis) -> list[fx.Node]:
    """The values that residual sums add to."""
    return list(dict.fromkeys(item.x for item in flow_of(analysis).sums))


def flow_of(analysis: Analysis) -> "Flow":
    """The flow of an analysis, made once."""
    return analysis.once("flow", Flow)


class Flow:
    """Which nodes depend on which, and the residual sums that follow from it."""

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis
        nodes = list(analysis.program.graph.nodes)
        self._place = {node: i for i, node in enumerate(nodes)}
        # Bit i of a node's number: it depends on node i. Constants depend on nothing that flows.
        self._above: list[int] = []
        for node in nodes:
            above = 0
            for source in node.all_input_nodes:
                if source not in analysis.constant:
                    i = self._place[source]
                    above |= self._above[i] | 1 << i
            self._above.append(above)
        self._products = [(c.node, c.weight) for c in analysis.contractions if c.weight is not None]
        self._mixers = [*(site.node for site in analysis.sites), *analysis.mixing]
        known = {path for path, _ in analysis.program.tensors()}
        self._added = {path for _, path in self._products if feature_of(path, known) is not None}
        branches = {node for node, path in self._products if path in self._added}
        # What a linear and the branch beside it add up to is one value, not a stream and a block.
        self._wholes = {node for node in nodes if _adds(node) and _branch(node, branches)}

    def depends(self, node: fx.Node, on: fx.Node) -> bool:
        """Whether a node is computed from another, or is it."""
        return node is on or bool(self._above[self._place[node]] >> self._place[on] & 1)

    def between(self, x: fx.Node, y: fx.Node, node: fx.Node) -> bool:
        """Whether a node is computed from `x` and `y` from it."""
        return node is not x and self.depends(node, x) and self.depends(y, node)

    def block(self, kind: str, x: fx.Node, y: fx.Node, user: fx.Node | None) -> Block:
        """The block from `x` to `y`."""
        weights = dict.fromkeys(path for node, path in self._products if self.between(x, y, node))
        own = [path for path in weights if path not in self._added]
        return Block(kind, x, y, user, tuple(weights), own[-1] if own else None)

    def mixes(self, item: Sum) -> bool:
        """Whether tokens see each other inside a sum."""
        return any(self.between(item.x, item.y, node) for node in self._mixers)

    @cached_property
    def sums(self) -> list[Sum]:
        """Every residual sum in graph order."""
        found = []
        for node in self._analysis.program.graph.nodes:
            if _adds(node) and node not in self._wholes and _absorbed(node) is None:
                parts = list(_terms(node, self._wholes))
                x = self._stream(parts)
                if x is not None:
                    found.append((x, tuple(part for part in parts if part is not x), node))
        heads = {x for x, _, _ in found}
        sums: list[Sum] = []
        for x, terms, root in found:
            y = _next(root, heads)
            if y is None:
                # The last of its chain ends as the one before it.
                before = next((s for s in sums if s.y is x), None)
                y = root if before is None else _like(root, before)
            if _type(x) == _type(y):
                sums.append(Sum(x, terms, root, y))
        return sums

    def _stream(self, terms: Sequence[fx.Node]) -> fx.Node | None:
        """The term that all others are computed from, through a matrix of parameters."""
        for x in terms:
            others = [term for term in terms if term is not x]
            if others and all(self._weighs(x, term) for term in others):
                return x
        return None

    def _weighs(self, x: fx.Node, term: fx.Node) -> bool:
        if not self.depends(term, x) or term is x:
            return False
        return any(self.between(x, term, node) for node, _ in self._products)


def _layers(flow: Flow) -> Iterator[list[Sum]]:
    """Runs of sums that follow each other; mixing tokens after a block that does not begins a new one."""
    run: list[Sum] = []
    for chain in _chains(flow.sums):
        plain = len({flow.mixes(item) for item in chain}) == 1
        for before, item in zip([None, *chain], chain, strict=False):
            begins = before is None or plain or (flow.mixes(item) and not flow.mixes(before))
            if begins and run:
                yield run
                run = []
            run.append(item)
    if run:
        yield run


def _chains(sums: Sequence[Sum]) -> list[list[Sum]]:
    chains: list[list[Sum]] = []
    for item in sums:
        home = next((c for c in chains if c[-1].y in (item.x, _reshaped(item.x))), None)
        if home is None:
            chains.append([item])
        else:
            home.append(item)
    return chains


def _reshaped(node: fx.Node) -> fx.Node:
    """What a view views."""
    while node.target in _RESHAPES:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return node


def _shaped_like(x: fx.Node, y: fx.Node) -> fx.Node | None:
    """The end of a run in the shape of its beginning, through views that alone read it."""
    node = y
    while _type(node) != _type(x):
        (user, *others) = node.users
        if others or user.target not in _RESHAPES:
            return None
        node = user
    return node


def _adds(node: fx.Node) -> bool:
    """Whether a node adds two floating-point values of its own shape."""
    if node.target is not _ADD or node.kwargs.get("alpha", 1) != 1 or len(node.args) != 2:
        return False
    parts = [part for part in node.args if isinstance(part, fx.Node)]
    return len(parts) == 2 and all(_type(part) == _type(node) for part in parts)


def _absorbed(node: fx.Node) -> fx.Node | None:
    """The sum that alone takes a sum in as one of its terms."""
    users = list(node.users)
    return users[0] if len(users) == 1 and _adds(users[0]) else None


def _branch(node: fx.Node, branches: Set[fx.Node]) -> bool:
    """Whether what a sum adds last is the product of a branch, with a bias or a scale or without."""
    part = node.args[1]
    while isinstance(part, fx.Node) and part not in branches and part.target in _SCALED:
        part = part.args[0]
    return part in branches


def _terms(node: fx.Node, wholes: Set[fx.Node]) -> Iterator[fx.Node]:
    for part in node.args:
        assert isinstance(part, fx.Node)
        if _adds(part) and part not in wholes and _absorbed(part) is node:
            yield from _terms(part, wholes)
        else:
            yield part


def _next(root: fx.Node, heads: set[fx.Node]) -> fx.Node | None:
    """The stream of the next block that a sum becomes through ops of a tail."""
    node: fx.Node | None = root
    while node is not None and node not in heads:
        node = _onward(node)
    return node


def _onward(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    if len(users) != 1:
        return None
    user = users[0]
    if user.target is _SELECT:
        return user if user.args[1] is node else None
    return user if user.target in _TAIL and user.args[0] is node else None


def _like(root: fx.Node, before: Sum) -> fx.Node:
    """Where a sum's tail ends when it is spelt like another's."""
    node, other = root, before.root
    while other is not before.y:
        here, there = _onward(node), _onward(other)
        if here is None or there is None or here.target is not there.target:
            return root
        node, other = here, there
    return node


def _type(node: fx.Node) -> object:
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return node
    return value.dtype, tuple(str(size) for size in value.shape)
