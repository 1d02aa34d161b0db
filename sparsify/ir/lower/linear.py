"""Linears as products with the weight stored `[in, out]`."""

import torch
from torch import fx

from sparsify.ir.graph import Writer, redirect
from sparsify.ir.lower.match import RESHAPES, size_of, swept
from sparsify.ir.program import Program

aten = torch.ops.aten


def canonical_conv1d(program: Program) -> int:
    """Let a flattened `addmm` with weight `[in, out]` work on `x [..., in]` directly."""
    count = 0
    for node in [n for n in program.graph.nodes if n.target is aten.addmm.default]:
        bias, flat, weight = node.args[:3]
        unflat = next(iter(node.users)) if len(node.users) == 1 else None
        if node.kwargs or unflat is None or not _flattens(flat) or unflat.target not in RESHAPES:
            continue
        source = flat.args[0]
        if _leading(source) != _leading(unflat):
            continue
        writer = Writer(program, before=unflat)
        product = writer.call(aten.matmul.default, source, weight)
        redirect(unflat, writer.call(aten.add.Tensor, product, bias))
        count += 1
    return swept(program, count)


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
    return swept(program, count)


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
    if not isinstance(node, fx.Node) or node.target not in RESHAPES:
        return False
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return bool(size_of(node, -1) == size_of(source, -1))


def _leading(node: fx.Node) -> list[str]:
    return [str(size) for size in node.meta["val"].shape[:-1]]
