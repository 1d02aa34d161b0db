"""Attention for a runtime: grouped keys and values are read unrepeated, masks have a row for each query."""

import torch
from torch import fx

from sparsify.ir.graph import Writer
from sparsify.ir.lower.match import RESHAPES, size_of, swept
from sparsify.ir.program import Program

aten = torch.ops.aten
_SDPA = aten.scaled_dot_product_attention.default
# Ops that copy memory and leave values and shape as they are.
_COPIES = {aten.clone.default, aten.contiguous.default}


def fold_repeat_kv(program: Program) -> int:
    """Let grouped attention read keys and values `[batch, groups, length, size]` unrepeated.

    Folds `unsqueeze(x, 2) -> expand(repeats) -> reshape` of both operands; `enable_gqa` is set only
    where query heads then outnumber key heads, because runtimes refuse it for equal counts.
    """
    count = 0
    for node in [n for n in program.graph.nodes if n.target is _SDPA]:
        query, key, value = node.args[:3]
        sources = unrepeated(key), unrepeated(value)
        if sources[0] is not None and sources[1] is not None and _heads(*sources) is not None:
            key, value = sources
            node.update_arg(1, key)
            node.update_arg(2, value)
            count += 1
        _set_grouped(node, size_of(query, 1) != size_of(key, 1))
    return swept(program, count)


def widen_masks(program: Program) -> int:
    """Give masks `[.., 1, keys]` that all queries share a row for each `[.., queries, keys]`; how many."""
    count = 0
    for node in [n for n in program.graph.nodes if n.target is _SDPA]:
        query, mask = node.args[0], node.args[3] if len(node.args) > 3 else None
        if not isinstance(mask, fx.Node) or str(size_of(mask, -2)) != "1":
            continue
        writer = Writer(program, before=node)
        rows = writer.call(aten.sym_size.int, query, query.meta["val"].dim() - 2)
        kept = [-1] * (mask.meta["val"].dim() - 2)
        node.update_arg(3, writer.call(aten.expand.default, mask, [*kept, rows, -1]))
        count += 1
    return swept(program, count)


def unrepeated(node: fx.Node) -> fx.Node | None:
    """`x [b, groups, t, d]` when a node is `x` with each group repeated next to itself."""
    node = _through(node, _COPIES)
    if node.target not in RESHAPES:
        return None
    expand = _through(node.args[0], _COPIES)
    if expand.target is not aten.expand.default:
        return None
    unsqueeze = expand.args[0]
    if not isinstance(unsqueeze, fx.Node) or unsqueeze.target is not aten.unsqueeze.default:
        return None
    source, dim = unsqueeze.args
    assert isinstance(source, fx.Node)
    wide, narrow = expand.meta["val"].shape, source.meta["val"].shape
    if dim != 2 or len(wide) != 5 or len(narrow) != 4:
        return None
    kept = [str(size) for size in (*wide[:2], *wide[3:])] == [str(size) for size in narrow]
    joined = size_of(node, 1) == narrow[1] * wide[2]
    return source if kept and joined else None


def _through(node: object, targets: set[torch._ops.OpOverload]) -> fx.Node:
    assert isinstance(node, fx.Node)
    while node.target in targets:
        node = node.args[0]
        assert isinstance(node, fx.Node)
    return node


def _heads(key: fx.Node | None, value: fx.Node | None) -> int | None:
    """The number of heads that keys and values share, None when they differ."""
    assert key is not None
    assert value is not None
    return int(size_of(key, 1)) if size_of(key, 1) == size_of(value, 1) else None


def _set_grouped(node: fx.Node, grouped: bool) -> None:
    if node.kwargs.get("enable_gqa", False) != grouped:
        node.update_kwarg("enable_gqa", grouped)
