"""What a leaf is, read off the ops around it: heads, head sizes, residual width, vocabulary."""

from dataclasses import dataclass

from torch import fx

from sparsify.ir.axes.analysis import Analysis, Attention
from sparsify.ir.axes.axis import Axis
from sparsify.ir.axes.residual import streams
from sparsify.ir.axes.rules.elementwise import overloads
from sparsify.ir.ops.probe import probe

_PRODUCTS = frozenset(overloads("linear.default addmm.default mm.default matmul.default"))
# Ops that keep a value linear in what it came from (with constant other operands).
LINEAR = frozenset(
    [
        probe,
        *overloads(
            """view.default reshape.default mul.Tensor mul.Scalar div.Tensor div.Scalar to.dtype
            dropout.default transpose.int contiguous.default clone.default neg.default"""
        ),
    ]
)


@dataclass(frozen=True)
class Roles:
    """Kinds of leaves, the head leaves of each attention, and the leaves inside products.

    `head_pairs` holds for each attention the leaf of its KV groups and that of the query heads per
    group, None where there is one index only. `inner` are leaves that are not channels although a
    matrix makes them: they are contracted between activations, or are the rank of a low-rank map.
    """

    kinds: dict[Axis, str]
    head_pairs: list[tuple[Axis | None, Axis | None]]
    inner: frozenset[Axis]

    def kind(self, leaf: Axis) -> str | None:
        """The kind of a leaf, None when the ops around it do not say."""
        return self.kinds.get(leaf.root())


def roles(analysis: Analysis) -> Roles:
    """The roles of every leaf of an analysis."""
    return analysis.once("roles", _roles)


def _roles(analysis: Analysis) -> Roles:
    kinds: dict[Axis, str] = {}
    pairs = _name_heads(analysis, kinds)
    _name_sizes(analysis, kinds)
    residual = [analysis.axes[node][-1] for node in streams(analysis)]
    for axes, kind in ((analysis.vocabularies, "vocabulary"), (residual, "hidden")):
        for axis in axes:
            for leaf in axis.leaves():
                kinds.setdefault(leaf, kind)
    return Roles(kinds, pairs, _inner(analysis))


def _name_heads(
    analysis: Analysis, kinds: dict[Axis, str]
) -> list[tuple[Axis | None, Axis | None]]:
    """Name the head leaves of every attention; returns those that make one or two clean axes."""
    pairs = []
    for site in analysis.sites:
        kv, rep = _head_leaves(site)
        for leaf in rep:
            kinds.setdefault(leaf, "heads")
        for leaf in kv:
            kinds.setdefault(leaf, "kv" if rep else "heads")
        if len(kv) <= 1 and len(rep) <= 1:
            pairs.append((next(iter(kv), None), next(iter(rep), None)))
    return pairs


def _name_sizes(analysis: Analysis, kinds: dict[Axis, str]) -> None:
    """Name the inner axes of every attention: rotary where halves of one head share a leaf."""
    for site in analysis.sites:
        inner = [] if site.key_size is None else list(site.key_size.leaves())
        for leaf in inner:
            kinds.setdefault(leaf, "rotary" if inner.count(leaf) > 1 else "head_dim")
        for leaf in site.value_size.leaves():
            kinds.setdefault(leaf, "head_dim")


def _head_leaves(site: Attention) -> tuple[list[Axis], list[Axis]]:
    """The leaves of KV groups, and those of query heads within a group."""
    made = {leaf for axis in site.made for leaf in axis.leaves()}
    queries = [leaf for leaf in site.query_heads.leaves() if leaf.size > 1 and not leaf.dynamic]
    keys = {leaf for leaf in site.key_heads.leaves() if leaf.size > 1} - made
    return [q for q in queries if q in keys], [q for q in queries if q not in keys]


def _inner(analysis: Analysis) -> frozenset[Axis]:
    found: set[Axis] = set()
    for item in analysis.contractions:
        if item.weight is None or _is_low_rank(analysis, item.x):
            found.update(item.axis.leaves())
    return frozenset(found)


def _is_low_rank(analysis: Analysis, x: fx.Node) -> bool:
    """Whether a linear map's input is itself a linear map of something, with nothing in between."""
    node = x
    while node.op == "call_function":
        if node.target in _PRODUCTS:
            return any(source in analysis.constant for source in node.all_input_nodes)
        live = [source for source in node.all_input_nodes if source not in analysis.constant]
        sized = [source for source in live if source in analysis.axes]
        if node.target not in LINEAR or len(sized) != 1:
            return False
        node = sized[0]
    return False
