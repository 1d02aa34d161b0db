"""Lower a program for a runtime that only infers: fewer nodes, weights as the runtime wants them.

    dropout(x)                                    -> x
    contiguous(x)                                 -> clone(x)
    histc(numbers, n, 0, n - 1)                   -> sum over rows of (numbers == 0 .. n - 1)
    grouped_mm(x, transpose(W), ends)             -> grouped_mm(x, W', ends)
    sdpa(q, repeat(k), repeat(v))                 -> sdpa(q, k, v, enable_gqa)
    view(addmm(b, view(x, [-1, in]), W[in, out])) -> matmul(x, W) + b
    linear(x, W[out, in], b)                      -> matmul(x, W'[in, out]) + b
    scales of blocks, float16                     -> float32

Outputs stay where they were up to rounding. The given program keeps its graph and its weights: the
lowered one is a copy of the graph that shares every tensor; W' is a transposed view of W under W's
path.
"""

import torch
from torch import fx

from sparsify.ir.features.packed_dense import block_weights
from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.lower.experts import lower_experts
from sparsify.ir.mode import DROPOUTS, set_training
from sparsify.ir.program import Program
from sparsify.ir.types import propagate

aten = torch.ops.aten
_SDPA = aten.scaled_dot_product_attention.default
_RESHAPES = {aten.view.default, aten.reshape.default, aten._unsafe_view.default}
# Ops that copy memory and leave values and shape as they are.
_COPIES = {aten.clone.default, aten.contiguous.default}


def lowered(program: Program) -> fx.GraphModule:
    """The program's graph for inference, with the same inputs, outputs and tensor paths."""
    copy = shared_copy(program)
    set_training(copy.module, False)
    propagate(copy)
    drop_dropout(copy)
    keep_copies(copy)
    lower_experts(copy)
    fold_repeat_kv(copy)
    canonical_conv1d(copy)
    lower_linear(copy)
    widen_scales(copy)
    sweep(copy)
    return copy.module


def shared_copy(program: Program) -> Program:
    """A program with its own graph whose module holds the very tensors of the given one."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    return program.over(fx.GraphModule(program.module, graph))


def drop_dropout(program: Program) -> int:
    """Let users of every dropout read its input: in evaluation mode they are the same."""
    dropouts = [node for node in program.graph.nodes if node.target in DROPOUTS]
    for node in dropouts:
        redirect(node, node.args[0])
    return _finish(program, len(dropouts))


def keep_copies(program: Program) -> int:
    """Spell `contiguous` as a copy: writers drop it where it copies nothing, and views need it."""
    copies = [node for node in program.graph.nodes if node.target is aten.contiguous.default]
    for node in copies:
        writer = Writer(program, before=node)
        form = {"memory_format": torch.contiguous_format}
        redirect(node, writer.call(aten.clone.default, node.args[0], **form))
    return _finish(program, len(copies))


def fold_repeat_kv(program: Program) -> int:
    """Let grouped attention read keys and values `[batch, groups, length, size]` unrepeated.

    Folds `unsqueeze(x, 2) -> expand(repeats) -> reshape` of both operands; `enable_gqa` is set only
    where query heads then outnumber key heads, because runtimes refuse it for equal counts.
    """
    count = 0
    for node in [n for n in program.graph.nodes if n.target is _SDPA]:
        query, key, value = node.args[:3]
        sources = _unrepeated(key), _unrepeated(value)
        if sources[0] is not None and sources[1] is not None and _heads(*sources) is not None:
            key, value = sources
            node.update_arg(1, key)
            node.update_arg(2, value)
            count += 1
        _set_grouped(node, _size(query, 1) != _size(key, 1))
    return _finish(program, count)


def canonical_conv1d(program: Program) -> int:
    """Let a flattened `addmm` with weight `[in, out]` work on `x [..., in]` directly."""
    count = 0
    for node in [n for n in program.graph.nodes if n.target is aten.addmm.default]:
        bias, flat, weight = node.args[:3]
        unflat = next(iter(node.users)) if len(node.users) == 1 else None
        if node.kwargs or unflat is None or not _flattens(flat) or unflat.target not in _RESHAPES:
            continue
        source = flat.args[0]
        if _leading(source) != _leading(unflat):
            continue
        writer = Writer(program, before=unflat)
        product = writer.call(aten.matmul.default, source, weight)
        redirect(unflat, writer.call(aten.add.Tensor, product, bias))
        count += 1
    return _finish(program, count)


def lower_linear(program: Program) -> int:
    """Store each weight that only linears read as `[in, out]`, and multiply by it as it stands.

    A weight that another op reads too (a tied embedding) keeps its layout, and its linear stays.
    """
    readers: dict[str, list[fx.Node]] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr":
            readers.setdefault(str(node.target), []).append(node)
    count = 0
    for path, nodes in readers.items():
        weight = program.tensor(path)
        linears = [user for node in nodes for user in node.users]
        if weight.dim() != 2 or not all(_weighs(user, nodes) for user in linears):
            continue
        program.put(path, weight.detach().t(), trainable=False)
        for node in nodes:
            node.meta["val"] = node.meta["val"].t()
        for linear in linears:
            _multiply(program, linear)
        count += len(linears)
    return _finish(program, count)


def widen_scales(program: Program) -> int:
    """Store the scales of dense weights in blocks as float32, which runtimes multiply by."""
    paths = {view.scales for view in block_weights(program)}
    for node in program.graph.nodes:
        if node.op == "get_attr" and node.target in paths:
            node.meta["val"] = node.meta["val"].float()
    for path in paths:
        program.put(path, program.tensor(path).float())
    return _finish(program, len(paths))


def _finish(program: Program, count: int) -> int:
    if count:
        sweep(program)
    return count


def _multiply(program: Program, linear: fx.Node) -> None:
    x, weight, *rest = linear.args
    bias = rest[0] if rest else linear.kwargs.get("bias")
    writer = Writer(program, before=linear)
    result = writer.call(aten.matmul.default, x, weight)
    if bias is not None:
        result = writer.call(aten.add.Tensor, result, bias)
    redirect(linear, result)


def _weighs(user: fx.Node, weights: list[fx.Node]) -> bool:
    """Whether a node is a linear that reads one of the nodes as its weight and as nothing else."""
    if user.target is not aten.linear.default or user.args[1] not in weights:
        return False
    return not any(other in weights for other in (user.args[0], *user.args[2:]))


def _flattens(node: object) -> bool:
    """Whether a node views `x [..., n]` as `[rows, n]`."""
    if not isinstance(node, fx.Node) or node.target not in _RESHAPES:
        return False
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return bool(_size(node, -1) == _size(source, -1))


def _leading(node: fx.Node) -> list[str]:
    return [str(size) for size in node.meta["val"].shape[:-1]]


def _unrepeated(node: fx.Node) -> fx.Node | None:
    """`x [b, groups, t, d]` when a node is `x` with each group repeated next to itself."""
    node = _through(node, _COPIES)
    if node.target not in _RESHAPES:
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
    joined = _size(node, 1) == narrow[1] * wide[2]
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
    return int(_size(key, 1)) if _size(key, 1) == _size(value, 1) else None


def _set_grouped(node: fx.Node, grouped: bool) -> None:
    if node.kwargs.get("enable_gqa", False) != grouped:
        node.update_kwarg("enable_gqa", grouped)


def _size(node: object, dim: int) -> int | torch.SymInt:
    assert isinstance(node, fx.Node)
    size: int | torch.SymInt = node.meta["val"].shape[dim]
    return size
