"""Low-rank branches inside a weight, `W + c * B A`: their insertion, and another rank."""

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from sparsify.ir.features.composed import drop_composition
from sparsify.ir.features.feature import Feature
from sparsify.ir.graph import Writer, redirect
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import lora
from sparsify.ir.views.composition import chain
from sparsify.ir.views.linear import Linear, out_in, products
from sparsify.tensors.lowrank import delta

aten = torch.ops.aten


def add_branch(
    program: Program, path: str, pair: Mapping[str, Tensor], scale: float, *, transposed: bool
) -> None:
    """Add `scale * B A` to a weight wherever a linear reads it, under the mask where there is one.

    `pair` holds `A [rank, in]` and `B [out, rank]` by path; a weight stored `[in, out]` gets the transpose.
    """
    for name, value in pair.items():
        program.put(name, value, trainable=True)
    a_path, b_path = pair
    wanted = [view for view in products(program) if view.weight == path]
    for base in {_base(view.operand): None for view in wanted}:
        writer = Writer(program, after=base)
        product = writer.call(aten.matmul.default, writer.read(b_path), writer.read(a_path))
        if transposed:
            stacked = program.tensor(path).dim() > 2
            turn = (aten.transpose.int, product, -2, -1) if stacked else (aten.t.default, product)
            product = writer.call(*turn)
        scaled = writer.call(aten.mul.Tensor, product, scale)
        total = writer.call(aten.add.Tensor, base, scaled)
        others = tuple(
            user
            for user in base.users
            if user is not total and not any(_feeds(user, view) for view in wanted)
        )
        redirect(base, total, but=others)


def resize_branch(program: Program, linear: Linear, rank: int, draw: torch.Generator) -> bool:
    """Give the branch of a linear another rank and leave `W + c B A` as it is; whether it had another.

    New rows of `A [rank, in]` are drawn as Kaiming's uniform rule does, their columns of `B [out, rank]`
    are zero; components that go are added to the weight. The rest stays bit for bit.
    """
    assert linear.branch is not None
    a, b = program.tensor(linear.branch.a), program.tensor(linear.branch.b)
    before = a.shape[-2]
    if rank == before:
        return False
    with torch.no_grad():
        if rank < before:
            gone = delta(a[..., rank:, :], b[..., rank:], linear.branch.scale, torch.float64)
            weight = out_in(linear, program.tensor(linear.weight))
            weight.copy_(weight.double() + gone)
            a, b = a[..., :rank, :].clone(), b[..., :rank].clone()
        else:
            *experts, _, inputs = a.shape
            rows = torch.rand(*experts, rank - before, inputs, generator=draw).to(a)
            a = torch.cat([a, (2 * rows - 1) * inputs**-0.5], -2)
            b = torch.cat([b, b.new_zeros(*b.shape[:-1], rank - before)], -1)
    trainable = program.tensor(linear.branch.a).requires_grad
    program.put(linear.branch.a, a, trainable=trainable)
    program.put(linear.branch.b, b, trainable=trainable)
    return True


def _base(operand: fx.Node) -> fx.Node:
    """The node that reads the stored weight under a composition."""
    return chain(operand)[-1]


def _feeds(user: fx.Node, view: Linear) -> bool:
    """Whether a user of the stored weight is the linear, or a part of the composition on its way into it."""
    return user is view.reader or user in chain(view.operand)


def branched_linears(program: Program) -> list[Linear]:
    """Every use of a weight that has a branch inside."""
    return [view for view in products(program) if view.branch is not None]


FEATURES = (
    Feature(
        "lora",
        lora(""),
        branched_linears,
        lambda program, view: drop_composition(program, view, branch=True),
    ),
)
