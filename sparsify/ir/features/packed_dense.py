"""Dense weights in blocks: views of linears and tables that read them, and the rewrites into such."""

from dataclasses import astuple, dataclass

from torch import Tensor, fx

from sparsify.ir.graph import Writer, redirect
from sparsify.ir.ops.registry import block_embedding, block_linear
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import blocks
from sparsify.ir.views.embedding import Table
from sparsify.ir.views.linear import Linear
from sparsify.ir.views.packed import packed_linears, replace_product
from sparsify.tensors.packing.blocks import unpack_blocks


@dataclass(frozen=True)
class Blocks:
    """How a dense weight `[out, columns]` is rounded: `int8` or `int4`, a scale for `group` columns."""

    columns: int
    values: str
    group: int


@dataclass(frozen=True)
class BlockWeight:
    """One use of a weight in blocks: `codes` and `scales` are paths; `bias` is None or a node."""

    node: fx.Node
    codes: str
    scales: str
    form: Blocks
    bias: fx.Node | None = None

    @property
    def is_table(self) -> bool:
        """Whether ids pick rows of it."""
        return self.node.target is block_embedding


def block_weights(program: Program) -> list[BlockWeight]:
    """Every linear and table of the program whose weight lies in blocks, in graph order."""
    return [view for node in program.graph.nodes if (view := block_weight_at(node)) is not None]


def block_weight_at(node: fx.Node) -> BlockWeight | None:
    """The weight in blocks that a node reads, if it does."""
    if node.op != "call_function" or node.target not in (block_linear, block_embedding):
        return None
    _, codes, scales, *rest = node.args
    assert isinstance(codes, fx.Node)
    assert isinstance(scales, fx.Node)
    bias = rest.pop(0) if node.target is block_linear else None
    assert bias is None or isinstance(bias, fx.Node)
    form = Blocks(*rest)  # type: ignore[arg-type]
    return BlockWeight(node, str(codes.target), str(scales.target), form, bias)


def unblocked_weight(program: Program, view: BlockWeight) -> Tensor:
    """The weight that codes and scales stand for, float32 `[out, columns]`."""
    codes, scales = program.tensor(view.codes), program.tensor(view.scales)
    return unpack_blocks(codes, scales, view.form.columns, view.form.values)


def is_rounded(program: Program) -> bool:
    """Whether a packed linear rounds its input: a last digit may then move the outputs by a step."""
    found = any(view.layout.group for view in packed_linears(program))
    return found or any(not view.is_table for view in block_weights(program))


def block_a_linear(
    program: Program, linear: Linear, value: tuple[Tensor, Tensor], form: Blocks
) -> None:
    """Let a linear read codes and scales in place of its dense weight and its quantizers.

    Raises OptionError for a product that the model scales (`addmm` with `alpha` or `beta`).
    """

    def make(writer: Writer, x: fx.Node, bias: fx.Node | None) -> fx.Node:
        stored = _stored(writer, linear.weight, value)
        return writer.call(block_linear, x, *stored, bias, *astuple(form))

    replace_product(program, linear, len(value[0]), make)


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
