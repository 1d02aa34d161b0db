"""Lower what routes tokens to experts, for a runtime without these ops.

histc(to(numbers, float), n, 0, n - 1)   ->  sum over rows of (numbers == 0 .. n - 1)
grouped_mm(x, transpose(W), ends)        ->  grouped_mm(x, W'), W' [experts, in, out] under W's path
"""

import torch
from torch import fx

from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.program import Program
from sparsify.ir.views.linear import product_at

aten = torch.ops.aten
_RANGE = (0, 0)  # of `histc` where none is given


def lower_experts(program: Program) -> int:
    """Rewrite counts of experts and the matrices of their products; returns how many."""
    nodes = list(program.graph.nodes)
    count = sum(_count(program, node) for node in nodes if node.target is aten.histc.default)
    count += sum(_store_transposed(program, node) for node in nodes)
    if count:
        sweep(program)
    return count


def _count(program: Program, node: fx.Node) -> bool:
    """Count whole numbers one by one; bins of another width stay."""
    values, bins, low, high = (*node.args, *_RANGE)[:4]
    if not isinstance(values, fx.Node) or values.target is not aten.to.dtype:
        return False
    numbers = values.args[0]
    assert isinstance(numbers, fx.Node)
    whole = not numbers.meta["val"].is_floating_point()
    if not whole or low != 0 or not isinstance(bins, int) or high != bins - 1:
        return False
    writer = Writer(program, before=node)
    column = writer.call(aten.unsqueeze.default, numbers, 1)
    each = column  # one bin without a range takes everything
    if bins > 1:
        each = writer.call(aten.arange.default, bins, dtype=numbers.meta["val"].dtype)
    equal = writer.call(aten.eq.Tensor, column, each)
    kind = node.meta["val"].dtype
    hits = writer.call(aten.to.dtype, equal, kind)
    redirect(node, writer.call(aten.sum.dim_IntList, hits, [0]))
    return True


def _store_transposed(program: Program, node: fx.Node) -> bool:
    """Store matrices of experts that one product alone reads as it multiplies by them."""
    view = product_at(program, node)
    if view is None or view.reader is node or view.operand.op != "get_attr":
        return False
    stored, turned = view.operand, view.reader
    readers = [n for n in program.graph.nodes if n.op == "get_attr" and n.target == view.weight]
    if readers != [stored] or len(stored.users) != 1:
        return False
    program.put(view.weight, program.tensor(view.weight).detach().mT, trainable=False)
    stored.meta["val"] = stored.meta["val"].mT
    redirect(turned, stored)
    return True
