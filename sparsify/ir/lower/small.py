"""Rewrites of one node each: dropout, copies, scales."""

import torch

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
    """Spell `contiguous` as a copy: writers drop it where it copies nothing, and views need it."""
    copies = [node for node in program.graph.nodes if node.target is aten.contiguous.default]
    for node in copies:
        writer = Writer(program, before=node)
        form = {"memory_format": torch.contiguous_format}
        redirect(node, writer.call(aten.clone.default, node.args[0], **form))
    return swept(program, len(copies))


def widen_scales(program: Program) -> int:
    """Store the scales of dense weights in blocks as float32, which runtimes multiply by."""
    paths = {view.scales for view in block_weights(program)}
    for node in program.graph.nodes:
        if node.op == "get_attr" and node.target in paths:
            node.meta["val"] = node.meta["val"].float()
    for path in paths:
        program.put(path, program.tensor(path).float())
    return swept(program, len(paths))
