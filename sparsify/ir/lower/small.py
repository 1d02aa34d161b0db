"""Rewrites of one node each: dropout, copies, differences, scales."""

import torch
from torch import fx

from sparsify.ir.graph import Writer, redirect
from sparsify.ir.lower.match import swept
from sparsify.ir.mode import DROPOUTS
from sparsify.ir.program import Program
from sparsify.ir.views.packed import block_weights

aten = torch.ops.aten


def drop_dropout(program: Program) -> int:
    """Let users of every dropout read its input: in evaluation mode they are the same."""
    dropouts = [node for node in program.graph.nodes if node.target in DROPOUTS]
    for node in dropouts:
        redirect(node, node.args[0])
    return swept(program, len(dropouts))


def keep_copies(program: Program) -> int:
    """Spell `contiguous` as a copy: writers drop it where it copies nothing, and views need it.

    So does a reshape of a transposed value: it may be taken for a view, which it is not once other ops before
    it lay out memory in another order.
    """
    nodes = list(program.graph.nodes)
    form = {"memory_format": torch.contiguous_format}
    copies = [node for node in nodes if node.target is aten.contiguous.default]
    for node in copies:
        writer = Writer(program, before=node)
        redirect(node, writer.call(aten.clone.default, node.args[0], **form))
    turned = [n for n in nodes if n.target is aten.reshape.default and _is_turned(n.args[0])]
    for node in turned:
        writer = Writer(program, before=node)
        node.update_arg(0, writer.call(aten.clone.default, node.args[0], **form))
    return swept(program, len(copies) + len(turned))


def _is_turned(node: object) -> bool:
    return isinstance(node, fx.Node) and node.target is aten.transpose.int


def spell_differences(program: Program) -> int:
    """Spell `a - x` as `-x + a`: taken apart, it would begin with a number."""
    nodes = [node for node in program.graph.nodes if node.target is aten.rsub.Scalar]
    found = [node for node in nodes if len(node.args) == 2]  # else the tensor is multiplied too
    for node in found:
        writer = Writer(program, before=node)
        x, number = node.args
        redirect(node, writer.call(aten.add.Tensor, writer.call(aten.neg.default, x), number))
    return swept(program, len(found))


def widen_scales(program: Program) -> int:
    """Store the scales of dense weights in blocks as float32, which runtimes multiply by."""
    paths = {view.scales for view in block_weights(program)}
    for node in program.graph.nodes:
        if node.op == "get_attr" and node.target in paths:
            node.meta["val"] = node.meta["val"].float()
    for path in paths:
        program.put(path, program.tensor(path).float())
    return swept(program, len(paths))
