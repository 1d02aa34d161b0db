"""Dense weights in blocks: views of linears and tables that read them, and the rewrites into such."""

from dataclasses import astuple

from torch import Tensor, fx

from sparsify.ir.features.packed_nm import replace_product
from sparsify.ir.graph import Writer, redirect
from sparsify.ir.ops.block_linear import block_embedding, block_linear
from sparsify.ir.ops.packed_experts import block_experts
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import blocks
from sparsify.ir.views.embedding import Table
from sparsify.ir.views.linear import Linear
from sparsify.ir.views.packed import Blocks


def block_a_linear(
    program: Program, linear: Linear, value: tuple[Tensor, Tensor], form: Blocks
) -> None:
    """Let a linear read codes and scales in place of its dense weight and its quantizers.

    Raises OptionError for a product that the model scales (`addmm` with `alpha` or `beta`).
    """

    def make(writer: Writer, x: fx.Node, bias: fx.Node | None) -> fx.Node:
        stored = _stored(writer, linear.weight, value)
        if linear.stacked:
            return writer.call(block_experts, x, *stored, linear.ends, *astuple(form))
        return writer.call(block_linear, x, *stored, bias, *astuple(form))

    replace_product(program, linear, value[0].shape[-3], make)


def block_a_table(
    program: Program, table: Table, value: tuple[Tensor, Tensor], form: Blocks
) -> None:
    """Let ids pick rows of codes and scales in place of those of a dense table."""
    writer = Writer(program, before=table.node)
    stored = _stored(writer, table.weight, value)
    redirect(table.node, writer.call(block_embedding, table.ids, *stored, *astuple(form)))


def _stored(writer: Writer, weight: str, value: tuple[Tensor, Tensor]) -> list[fx.Node]:
    """Read codes and scales, stored the first time: a tied weight is stored once."""
    for path, tensor in zip(blocks(weight), value, strict=True):
        if not writer.program.has(path):
            writer.program.put(path, tensor)
    return [writer.read(path) for path in blocks(weight)]
