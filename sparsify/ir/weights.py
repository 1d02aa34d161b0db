"""Composition on the weight side: `W_eff = mask * (W + c * B A)`, its insertion and removal."""

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.names import weight_mask
from sparsify.ir.program import Program
from sparsify.ir.views import Linear, linear_at, linears

aten = torch.ops.aten


def add_mask(program: Program, path: str, mask: Tensor, linear: Linear) -> None:
    """Multiply the weight that enters a linear by a boolean mask in its stored layout."""
    name = weight_mask(path)
    if not program.has(name):
        program.put(name, mask)
    writer = Writer(program, before=linear.node)
    masked = writer.call(aten.mul.Tensor, linear.operand, writer.read(name))
    linear.node.replace_input_with(linear.operand, masked)


def add_branch(
    program: Program, path: str, pair: Mapping[str, Tensor], scale: float, *, transposed: bool
) -> None:
    """Add `scale * B A` to a weight wherever a linear reads it, under the mask where there is one.

    `pair` holds `A [rank, in]` and `B [out, rank]` by path; a weight stored `[in, out]` gets the transpose.
    """
    for name, value in pair.items():
        program.put(name, value, trainable=True)
    a_path, b_path = pair
    wanted = [view for view in linears(program) if view.weight == path]
    for base in {_base(view.operand): None for view in wanted}:
        writer = Writer(program, after=base)
        product = writer.call(aten.matmul.default, writer.read(b_path), writer.read(a_path))
        if transposed:
            product = writer.call(aten.t.default, product)
        scaled = writer.call(aten.mul.Tensor, product, scale)
        total = writer.call(aten.add.Tensor, base, scaled)
        others = tuple(
            user
            for user in base.users
            if user is not total and not any(_feeds(user, view) for view in wanted)
        )
        redirect(base, total, but=others)


def drop_composition(program: Program, linear: Linear, *, mask: bool, branch: bool) -> None:
    """Take the mask, the branch, or both out of the weight of a linear."""
    # Read afresh: a shared weight may have lost its composition with another of its linears.
    view = linear_at(program, linear.node)
    assert view is not None
    node = view.operand
    while node.op == "call_function":
        inner = node.args[0]
        assert isinstance(inner, fx.Node)
        is_branch = node.target is aten.add.Tensor
        if (branch and is_branch) or (mask and not is_branch):
            redirect(node, inner)
        node = inner
    sweep(program)


def _base(operand: fx.Node) -> fx.Node:
    """The node that reads the stored weight under a composition."""
    while operand.op == "call_function":
        inner = operand.args[0]
        assert isinstance(inner, fx.Node)
        operand = inner
    return operand


def _feeds(user: fx.Node, view: Linear) -> bool:
    """Whether a user of the stored weight is the linear, or the mask on its way into it."""
    return user in (view.node, view.operand)
