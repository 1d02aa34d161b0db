"""Attention with a cache as ONNX Runtime's processor code does it fastest: one contrib node a layer.

    Attention(rotary(Q), Concat(past K, rotary(K)), Concat(past V, V), mask)
    ->  GroupQueryAttention(rotary(Q), rotary(K), V, past K, past V, lengths, total, mask)

`Q, K, V [batch, length, heads * size]`: nothing is transposed. The node appends to the caches itself, in
place where past and present are bound to one buffer, which may be longer than the sequence: lengths
come from `attention_mask [batch, past + length]`, never from a cache. The node bars what comes after a
token; the mask says the rest, padding on any side and windows. What has another form stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from sparsify.runtime.session import SHARED_CACHE

DOMAIN = "com.microsoft"
_MASK, _IDS, _PAST = "attention_mask", "input_ids", "past_key_values."
_TURN = (0, 2, 1, 3)  # between heads before length and heads after it
_LENGTH = (2, 3)  # start and end of the dimension of a cache that grows


@dataclass(frozen=True)
class _Cached:
    """An attention node whose keys and values are each a cache with something `new` appended."""

    node: ir.Node
    query: ir.Value
    mask: ir.Value
    past: tuple[ir.Value, ir.Value]
    new: tuple[ir.Value, ir.Value]
    present: tuple[ir.Value, ir.Value]
    heads: int
    groups: int


def fuse_attention(model: ir.Model) -> int:
    """Rewrite every attention that has the form; returns how many had it.

    The caller knows that no mask lets a token see what comes after it.
    """
    names = {value.name or "": value for value in model.graph.inputs}
    found = [view for node in model.graph if (view := _cached(node)) is not None]
    if not found or not {_MASK, _IDS} <= names.keys():
        return 0
    caches = [value for name, value in names.items() if name.startswith(_PAST) and _grows(value)]
    writer = _Writer(model.graph, names[_MASK], names[_IDS], caches)
    for view in found:
        writer.rewrite(view)
    model.graph.opset_imports[DOMAIN] = 1
    RemoveUnusedNodesPass()(model)
    if not any(_is_measured(value) for value in caches):
        model.metadata_props[SHARED_CACHE] = "true"
    return len(found)


class _Writer:
    """Writes new nodes before a place in the graph; what all layers share stands before the first of them."""

    def __init__(
        self, graph: ir.Graph, mask: ir.Value, ids: ir.Value, caches: Sequence[ir.Value]
    ) -> None:
        self._graph, self._place = graph, graph[0]
        self._biases: dict[ir.Value, ir.Value] = {}
        total = self._op("Shape", mask, start=1, end=2)
        past = self._op("Sub", total, self._op("Shape", ids, start=1, end=2))
        for node in [node for cache in caches for node in cache.consumers() if _measures(node)]:
            node.outputs[0].replace_all_uses_with(past)
        whole = self._op("Cast", total, to=ir.DataType.INT32)
        self._total = self._op("Squeeze", whole)
        # Every sequence of a batch is as long as the longest: the mask bars its padding.
        last = self._op("Sub", whole, self._constant([1], np.int32))
        self._last = self._op("Expand", last, self._op("Shape", mask, start=0, end=1))

    def rewrite(self, view: _Cached) -> None:
        """Write one attention; the nodes it replaces are left without readers."""
        self._place = view.node
        size = int(view.past[0].shape[3])  # type: ignore[index, arg-type]
        node = ir.node(
            "GroupQueryAttention",
            [
                self._joined(view.query, view.heads),
                *(self._joined(value, view.groups) for value in view.new),
                *view.past,
                self._last,
                self._total,
                *(None, None, None),  # tables and places of rotary positions
                self._bias(view.mask),
            ],
            {
                "num_heads": view.heads,
                "kv_num_heads": view.groups,
                "scale": view.node.attributes.get_float("scale", size**-0.5),
                "softcap": view.node.attributes.get_float("softcap", 0.0),
            },
            domain=DOMAIN,
            num_outputs=3,
        )
        self._graph.insert_before(self._place, node)
        for old, new in zip(view.present, node.outputs[1:], strict=True):
            _pass_on(old, new)
        self._give(view.node.outputs[0], node.outputs[0], view.heads, size)

    def _give(self, old: ir.Value, new: ir.Value, heads: int, size: int) -> None:
        """Let the readers of `old [batch, heads, length, size]` read `new [batch, length, heads * size]`."""
        turned = _only_user(old)
        joined = _only_user(turned.outputs[0]) if turned is not None and _turns(turned) else None
        if joined is not None and _joins(joined, heads * size):
            _pass_on(joined.outputs[0], new)
            return
        cut = self._op("Reshape", new, self._constant([0, 0, heads, size]))
        _pass_on(old, self._op("Transpose", cut, perm=_TURN))

    def _joined(self, value: ir.Value, heads: int) -> ir.Value:
        """`[batch, heads, length, size]` as `[batch, length, heads * size]`; a rotation comes last."""
        node = value.producer()
        if node is not None and node.op_type == "RotaryEmbedding" and len(node.inputs) == 3:
            source, *waves = node.inputs
            assert source is not None
            kept = {k: v for k, v in node.attributes.items() if k != "num_heads"}
            flat = self._joined(source, heads)
            return self._op("RotaryEmbedding", flat, *waves, **kept, num_heads=heads)
        turned = node is not None and _turns(node)
        last = node.inputs[0] if turned else self._op("Transpose", value, perm=_TURN)  # type: ignore[union-attr]
        assert last is not None
        width = heads * int(value.shape[3])  # type: ignore[index, arg-type]
        cut = last.producer()
        whole = cut.inputs[0] if cut is not None and cut.op_type == "Reshape" else None
        if whole is not None and whole.shape is not None and _ends(whole, 3, width):
            return whole
        return self._op("Reshape", last, self._constant([0, 0, width]))

    def _bias(self, mask: ir.Value) -> ir.Value:
        """What a mask adds to scores: nothing where it is true, the least number elsewhere."""
        if mask.dtype != ir.DataType.BOOL:
            return mask
        if mask not in self._biases:
            allowed, barred = (
                self._constant(number, np.float32) for number in (0, np.finfo(np.float32).min)
            )
            self._biases[mask] = self._op("Where", mask, allowed, barred)
        return self._biases[mask]

    def _op(self, kind: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        node = ir.node(kind, inputs, attributes)  # type: ignore[arg-type]
        self._graph.insert_before(self._place, node)
        return node.outputs[0]

    def _constant(self, value: object, dtype: type[np.generic] = np.int64) -> ir.Value:
        return self._op("Constant", value=ir.tensor(np.array(value, dtype)))


def _cached(node: ir.Node) -> _Cached | None:
    """The attention at a node, if it has the form."""
    if node.op_type != "Attention" or node.domain or len(node.inputs) != 4:
        return None
    if any(node.attributes.get_int(name, 0) for name in ("is_causal", "qk_matmul_output_mode")):
        return None
    query, key, value, mask = node.inputs
    keys, values = _appended(key), _appended(value)
    if query is None or mask is None or keys is None or values is None:
        return None
    heads, groups = _size(query, 1), _size(keys[0], 1)
    sizes = {_size(query, 3), _size(keys[0], 3), _size(values[0], 3)}
    uneven = heads is None or groups is None or heads % groups or None in sizes or len(sizes) > 1
    if uneven or mask.shape is None or len(mask.shape) != 4:
        return None
    past, new, present = zip(keys, values, strict=True)
    return _Cached(node, query, mask, past, new, present, heads, groups)  # type: ignore[arg-type]


def _appended(value: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """A cache, what is appended to it, and the two together.

    None for a value that is no such output, or that something else reads as well.
    """
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Concat" or len(node.inputs) != 2:
        return None
    past, new = node.inputs
    along = node.attributes["axis"].as_int() in (2, -2)
    if past is None or new is None or value is None or not along or _only_user(value) is None:
        return None
    return (past, new, value) if past.is_graph_input() and value.is_graph_output() else None


def _pass_on(old: ir.Value, new: ir.Value) -> None:
    """Let a new value take the place of an old one, with its name and type, among the outputs too."""
    new.type, new.shape, new.name, old.name = old.type, old.shape, old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _only_user(value: ir.Value) -> ir.Node | None:
    users = value.consumers()
    return users[0] if len(users) == 1 else None


def _turns(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and tuple(node.attributes["perm"].as_ints()) == _TURN


def _joins(node: ir.Node, width: int) -> bool:
    return node.op_type == "Reshape" and _ends(node.outputs[0], 3, width)


def _ends(value: ir.Value, rank: int, width: int) -> bool:
    """Whether a value has a rank and a last dimension."""
    return value.shape is not None and len(value.shape) == rank and _size(value, -1) == width


def _size(value: ir.Value, dim: int) -> int | None:
    """A dimension where it is a number."""
    size = None if value.shape is None else value.shape[dim]
    return size if isinstance(size, int) else None


def _grows(cache: ir.Value) -> bool:
    """Whether a cache is as long as the past; a state has one size."""
    return any(_size(cache, dim) is None for dim in range(1, len(cache.shape or ())))


def _measures(node: ir.Node) -> bool:
    """Whether a node takes the length of a cache."""
    limits = (node.attributes.get_int("start", 0), node.attributes.get_int("end", -1))
    return node.op_type == "Shape" and limits == _LENGTH


def _is_measured(cache: ir.Value) -> bool:
    """Whether the length of a cache still counts: one of its readers is no fused attention, or takes it."""
    readers = [node for node in cache.consumers() if node.domain != DOMAIN]
    single = [n for n in readers if n.op_type == "Shape" and n.attributes.get_int("end", 4) <= 2]
    return len(single) < len(readers)
