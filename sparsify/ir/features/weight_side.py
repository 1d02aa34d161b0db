"""Composition on the weight side: `W_eff = Q(S * mask * (W + c * B A))`, its insertion and removal."""

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.ops.registry import quantize_activations, quantize_weight, scale_weight
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import row_scales, scales_of, switch_of, weight_mask
from sparsify.ir.views.composition import chain
from sparsify.ir.views.linear import Linear, linear_at, linears, out_in
from sparsify.tensors.lowrank import delta

aten = torch.ops.aten


def add_mask(program: Program, path: str, mask: Tensor, linear: Linear) -> None:
    """Multiply the weight that enters a linear, or its quantizer, by a boolean mask in its stored layout."""
    name = weight_mask(path)
    if not program.has(name):
        program.put(name, mask)
    reader, operand = _unrounded(linear)
    writer = Writer(program, before=reader)
    masked = writer.call(aten.mul.Tensor, operand, writer.read(name))
    reader.replace_input_with(operand, masked)


def add_row_scales(program: Program, linear: Linear, blocks: int) -> None:
    """Scale blocks of the rows of the weight that enters a linear, or its quantizer; ones at first."""
    name, weight = row_scales(linear.weight), program.tensor(linear.weight)
    if not program.has(name):
        outputs = out_in(linear, weight).shape[0]
        program.put(name, torch.ones(outputs, blocks).to(weight), trainable=True)
    reader, operand = _unrounded(linear)
    writer = Writer(program, before=reader)
    layout = {"transposed": True} if linear.transposed else {}
    scaled = writer.call(scale_weight, operand, writer.read(name), **layout)
    reader.replace_input_with(operand, scaled)


def add_quantizers(program: Program, linear: Linear, values: str, group: int, *, x: bool) -> None:
    """Round the composed weight of a linear to `values`, a scale for `group` inputs; with `x`, its input too.

    The scales `[out, groups]` are zero and the switch of the input is off: both are identities yet.
    """
    weight = program.tensor(linear.weight)
    outputs, inputs = out_in(linear, weight).shape
    writer = Writer(program, before=linear.node)
    scales = scales_buffer(writer, linear.weight, outputs, inputs, group)
    layout = {"transposed": True} if linear.transposed else {}
    rounded = writer.call(quantize_weight, linear.operand, scales, values, group, **layout)
    linear.node.replace_input_with(linear.operand, rounded)
    if x:
        switch = _buffer(writer, switch_of(linear.weight), (), torch.bool)
        entering = writer.call(quantize_activations, linear.x, switch, group)
        linear.node.replace_input_with(linear.x, entering)


def scales_buffer(writer: Writer, path: str, outputs: int, inputs: int, group: int) -> fx.Node:
    """Read the scales `[outputs, groups]` of a weight, made of zeros the first time."""
    return _buffer(writer, scales_of(path), (outputs, -(-inputs // group)), torch.float16)


def drop_quantizers(linear: Linear) -> None:
    """Let a linear read its composed weight and its input as they are; `sweep` then forgets the scales."""
    for quantizer in (linear.quantizer, linear.input_quantizer):
        if quantizer is not None:
            drop_rounding(quantizer.node)


def drop_rounding(node: fx.Node) -> None:
    """Let the readers of what a node rounds read it as it is."""
    inner = node.args[0]
    assert isinstance(inner, fx.Node)
    redirect(node, inner)


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


def resize_branch(program: Program, linear: Linear, rank: int, draw: torch.Generator) -> bool:
    """Give the branch of a linear another rank and leave `W + c B A` as it is; whether it had another.

    New rows of `A [rank, in]` are drawn as Kaiming's uniform rule does, their columns of `B [out, rank]`
    are zero; components that go are added to the weight. The rest stays bit for bit.
    """
    assert linear.branch is not None
    a, b = program.tensor(linear.branch.a), program.tensor(linear.branch.b)
    before = a.shape[0]
    if rank == before:
        return False
    with torch.no_grad():
        if rank < before:
            gone = delta(a[rank:], b[:, rank:], linear.branch.scale, torch.float64)
            weight = out_in(linear, program.tensor(linear.weight))
            weight.copy_(weight.double() + gone)
            a, b = a[:rank].clone(), b[:, :rank].clone()
        else:
            rows = torch.rand(rank - before, a.shape[1], generator=draw).to(a)
            bound = a.shape[1] ** -0.5
            a = torch.cat([a, (2 * rows - 1) * bound])
            b = torch.cat([b, b.new_zeros(b.shape[0], rank - before)], 1)
    trainable = program.tensor(linear.branch.a).requires_grad
    program.put(linear.branch.a, a, trainable=trainable)
    program.put(linear.branch.b, b, trainable=trainable)
    return True


def drop_composition(
    program: Program,
    linear: Linear,
    *,
    mask: bool = False,
    branch: bool = False,
    scales: bool = False,
) -> None:
    """Take the mask, the branch or the scales of rows out of the weight of a linear."""
    # Read afresh: a shared weight may have lost its composition with another of its linears.
    view = linear_at(program, linear.node)
    assert view is not None
    for node in chain(view.operand)[:-1]:
        dropped = (branch, aten.add.Tensor), (mask, aten.mul.Tensor), (scales, scale_weight)
        if any(wanted and node.target is target for wanted, target in dropped):
            inner = node.args[0]
            assert isinstance(inner, fx.Node)
            redirect(node, inner)
    sweep(program)


def _unrounded(linear: Linear) -> tuple[fx.Node, fx.Node]:
    """The node that reads a composed weight before it is rounded, and that weight."""
    if linear.quantizer is None:
        return linear.node, linear.operand
    return linear.quantizer.node, chain(linear.operand)[1]


def _base(operand: fx.Node) -> fx.Node:
    """The node that reads the stored weight under a composition."""
    return chain(operand)[-1]


def _feeds(user: fx.Node, view: Linear) -> bool:
    """Whether a user of the stored weight is the linear, or a part of the composition on its way into it."""
    return user is view.node or user in chain(view.operand)


def _buffer(writer: Writer, path: str, shape: tuple[int, ...], dtype: torch.dtype) -> fx.Node:
    """Read a buffer, made of zeros the first time: a shared weight has one for all its linears."""
    if writer.program.has(path):
        return writer.read(path)
    program = writer.program
    device = next(program.module.parameters()).device
    return writer.buffer(path, torch.zeros(shape, dtype=dtype, device=device))
