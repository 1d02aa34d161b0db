"""Low-rank branches beside a linear, `y + linear(linear(x, A), B)`: their insertion and reading."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import blocks, packed
from sparsify.ir.views.linear import Linear, linears
from sparsify.ir.views.packed import (
    block_weights,
    packed_linears,
    unblocked_weight,
    unpacked_weight,
)

aten = torch.ops.aten


@dataclass(frozen=True)
class Beside:
    """A branch beside a linear: the paths of `A [rank, in]` and `B [out, rank]`."""

    linear: Linear
    a: str
    b: str


def add_beside(program: Program, uses: Sequence[Linear], pair: Mapping[str, Tensor]) -> None:
    """Add a trainable branch to every use of one weight.

    `pair` holds `A [rank, in]` and `B [out, rank]` by path. The branch reads the input of the linear before
    any rounding, and stays when the linear is packed.
    """
    for path, value in pair.items():
        program.put(path, value, trainable=True)
    a_path, b_path = pair
    for use in uses:
        writer = Writer(program, after=use.node)
        inner = writer.call(aten.linear.default, unrounded(use), writer.read(a_path))
        branch = writer.call(aten.linear.default, inner, writer.read(b_path))
        total = writer.call(aten.add.Tensor, use.node, branch)
        redirect(use.node, total, but=(total,))


def branches_beside(program: Program, names: Callable[[str], tuple[str, str]]) -> list[Beside]:
    """Every linear, once a weight, that has a branch whose paths `names` gives for that of the weight."""
    views = {view.weight: view for view in linears(program)}
    found = [Beside(view, *names(path)) for path, view in views.items()]
    return [one for one in found if program.has(one.a) and program.has(one.b)]


def drop_beside(program: Program, found: Beside) -> None:
    """Take a branch out again, at every use of its weight."""
    for use in [view for view in linears(program) if view.weight == found.linear.weight]:
        for total in [user for user in use.node.users if user.target is aten.add.Tensor]:
            branch = total.args[1]
            if isinstance(branch, fx.Node) and _reads(branch, found.b):
                redirect(total, use.node)
    sweep(program)


def carry_beside(made: Program, program: Program, names: Callable[[str], tuple[str, str]]) -> None:
    """Put a branch beside every linear that has one in another program; its weights may be packed there."""
    uses: dict[str, list[Linear]] = {}
    for view in linears(made):
        uses.setdefault(view.weight, []).append(view)
    for weight, found in uses.items():
        pair = {
            path: tensor
            for path in names(weight)
            if (tensor := unpacked(program, path)) is not None
        }
        if pair:
            add_beside(made, found, pair)


def unpacked(program: Program, path: str) -> Tensor | None:
    """A weight, as it is or was before it was packed, `[out, in]`; None when there is none."""
    if program.has(path):
        return program.tensor(path)
    codes, sparse = blocks(path)[0], packed(path)
    if program.has(codes):
        stored = {view.codes: view for view in block_weights(program)}
        return unblocked_weight(program, stored[codes])
    if program.has(sparse):
        held = {view.weight: view for view in packed_linears(program)}
        return unpacked_weight(program, held[sparse])
    return None


def _reads(branch: fx.Node, path: str) -> bool:
    """Whether a node multiplies by the tensor at a path as its weight."""
    weight = branch.args[1] if branch.target is aten.linear.default else None
    return isinstance(weight, fx.Node) and weight.op == "get_attr" and weight.target == path


def unrounded(linear: Linear) -> fx.Node:
    """What enters a linear before its input quantizer, if it has one."""
    if linear.input_quantizer is None:
        return linear.x
    inner = linear.input_quantizer.node.args[0]
    assert isinstance(inner, fx.Node)
    return inner
