"""The branch of SLoRB beside a linear: `y + linear(linear(x, X), S)`, its insertion and reading."""

from collections.abc import Sequence

import torch

from sparsify.ir.graph import Writer, redirect
from sparsify.ir.names import slorb
from sparsify.ir.program import Program
from sparsify.ir.views import Linear, linears, out_in
from sparsify.tensors.lowrank import block_indicator

aten = torch.ops.aten


def add_slorb(program: Program, views: Sequence[Linear], k: int) -> None:
    """Add a branch over sums of `k` inputs to every use of one weight.

    `X [in / k, in]` is the block indicator, `S [out, in / k]` zero.
    """
    view = views[0]
    weight = out_in(view, program.tensor(view.weight))
    outputs, inputs = weight.shape
    x_path, s_path = slorb(view.weight)
    sums = block_indicator(inputs, k)
    for path, value in ((x_path, sums), (s_path, torch.zeros(outputs, inputs // k))):
        program.put(path, value.to(weight), trainable=True)
    for use in views:
        writer = Writer(program, after=use.node)
        inner = writer.call(aten.linear.default, use.x, writer.read(x_path))
        branch = writer.call(aten.linear.default, inner, writer.read(s_path))
        total = writer.call(aten.add.Tensor, use.node, branch)
        redirect(use.node, total, but=(total,))


def slorbs(program: Program) -> list[tuple[Linear, str, str]]:
    """Every masked linear with a branch beside it, once a weight, and the paths of its X and S."""
    views = {view.weight: view for view in linears(program) if view.mask is not None}
    found = [(view, *slorb(path)) for path, view in views.items()]
    return [(view, x, s) for view, x, s in found if program.has(x) and program.has(s)]
