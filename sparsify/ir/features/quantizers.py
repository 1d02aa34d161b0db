"""Quantizers of weights, inputs and tables: their insertion and removal."""

from collections.abc import Sequence

import torch
from torch import fx

from sparsify.ir.features.feature import Feature
from sparsify.ir.graph import Writer, redirect
from sparsify.ir.ops.rounding import quantize_activations, quantize_weight
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import scales_of, switch_of
from sparsify.ir.views.embedding import Table, tables
from sparsify.ir.views.linear import Linear, out_in, products


def add_table_quantizer(program: Program, table: Table, values: str, group: int) -> None:
    """Round the rows that ids pick to `values`, a scale for `group` columns, zero at first: the identity."""
    writer = Writer(program, before=table.node)
    scales = scales_buffer(writer, table.weight, program.tensor(table.weight).shape, group)
    rounded = writer.call(quantize_weight, table.operand, scales, values, group)
    table.node.replace_input_with(table.operand, rounded)


def add_quantizers(program: Program, linear: Linear, values: str, group: int, *, x: bool) -> None:
    """Round the composed weight of a linear to `values`, a scale for `group` inputs; with `x`, its input too.

    The scales `[out, groups]`, of experts `[experts, out, groups]`, are zero and the switch of the input is
    off: both are identities yet.
    """
    weight = program.tensor(linear.weight)
    writer = Writer(program, before=linear.reader)
    scales = scales_buffer(writer, linear.weight, out_in(linear, weight).shape, group)
    layout = {"transposed": True} if linear.transposed else {}
    rounded = writer.call(quantize_weight, linear.operand, scales, values, group, **layout)
    linear.reader.replace_input_with(linear.operand, rounded)
    if x:
        writer = Writer(program, before=linear.node)
        switch = _buffer(writer, switch_of(linear.weight), (), torch.bool)
        entering = writer.call(quantize_activations, linear.x, switch, group)
        linear.node.replace_input_with(linear.x, entering)


def scales_buffer(writer: Writer, path: str, shape: Sequence[int], group: int) -> fx.Node:
    """Read the scales `[..., outputs, groups]` of a weight `[..., outputs, inputs]`, zeros the first time."""
    *rows, inputs = shape
    return _buffer(writer, scales_of(path), (*rows, -(-inputs // group)), torch.float16)


def quantized(program: Program) -> list[Linear | Table]:
    """Every linear and every table whose weight may be rounded."""
    every: list[Linear | Table] = [*products(program), *tables(program)]
    return [view for view in every if view.quantizer is not None]


def drop_quantizers(view: Linear | Table) -> None:
    """Let a weight and the input of its linear be read as they are; `sweep` then forgets the scales."""
    entering = view.input_quantizer if isinstance(view, Linear) else None
    for quantizer in (view.quantizer, entering):
        if quantizer is not None:
            inner = quantizer.node.args[0]
            assert isinstance(inner, fx.Node)
            redirect(quantizer.node, inner)


def _buffer(writer: Writer, path: str, shape: tuple[int, ...], dtype: torch.dtype) -> fx.Node:
    """Read a buffer, made of zeros the first time: a shared weight has one for all its linears."""
    if writer.program.has(path):
        return writer.read(path)
    program = writer.program
    device = next(program.module.parameters()).device
    return writer.buffer(path, torch.zeros(shape, dtype=dtype, device=device))


FEATURES = (
    Feature(
        "quantizers",
        (scales_of(""), switch_of("")),
        quantized,
        lambda _, v: drop_quantizers(v),
    ),
    # Scales are chosen: a quantizer with them rounds, one without is the identity.
    Feature("quantized", in_values=True),
)
