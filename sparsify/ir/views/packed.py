"""Packed linears: the view of `sparsify.nm_linear`, and the rewrite of a linear into one."""

from dataclasses import dataclass

from torch import Tensor, fx

from sparsify.ir.ops.block_linear import block_embedding, block_linear
from sparsify.ir.ops.nm_linear import nm_linear
from sparsify.ir.program import Program
from sparsify.tensors.packing.blocks import unpack_blocks
from sparsify.tensors.packing.packed import Layout, dense


@dataclass(frozen=True)
class PackedLinear:
    """A linear map `y = x W^T + b` with a packed weight: `weight` is the path of its bytes."""

    node: fx.Node
    x: fx.Node
    weight: str
    layout: Layout


def packed_linears(program: Program) -> list[PackedLinear]:
    """Every packed linear of the program, in graph order."""
    return [view for node in program.graph.nodes if (view := packed_at(node)) is not None]


def packed_at(node: fx.Node) -> PackedLinear | None:
    """The packed linear at a node, if it is one."""
    if node.op != "call_function" or node.target is not nm_linear:
        return None
    x, weight, _, *layout = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(weight, fx.Node)
    return PackedLinear(node, x, str(weight.target), Layout(*layout))  # type: ignore[arg-type]


def unpacked_weight(program: Program, view: PackedLinear) -> Tensor:
    """The weight that a packed linear computes with, float32 `[out, in]`."""
    return dense(program.tensor(view.weight), view.layout)


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
