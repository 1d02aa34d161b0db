"""Packed linears: the view of `sparsify.nm_linear`, and the rewrite of a linear into one."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsify.ir.ops.block_linear import block_embedding, block_linear
from sparsify.ir.ops.nm_linear import nm_linear
from sparsify.ir.ops.packed_experts import block_experts, nm_experts
from sparsify.ir.program import Program
from sparsify.tensors.packing.blocks import unpack_blocks
from sparsify.tensors.packing.packed import Layout, dense

_IN_BLOCKS = (block_linear, block_embedding, block_experts)


@dataclass(frozen=True)
class PackedLinear:
    """A linear map `y = x W^T + b` with a packed weight: `weight` is the path of its bytes.

    Of experts `stacked` together each has its own, `[experts, bytes]`.
    """

    node: fx.Node
    x: fx.Node
    weight: str
    layout: Layout

    @property
    def stacked(self) -> bool:
        """Whether its matrices are those of experts."""
        return self.node.target is nm_experts


def packed_linears(program: Program) -> list[PackedLinear]:
    """Every packed linear of the program, in graph order."""
    return [view for node in program.graph.nodes if (view := packed_at(node)) is not None]


def packed_at(node: fx.Node) -> PackedLinear | None:
    """The packed linear at a node, if it is one."""
    if node.op != "call_function" or node.target not in (nm_linear, nm_experts):
        return None
    x, weight, _, *layout = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(weight, fx.Node)
    return PackedLinear(node, x, str(weight.target), Layout(*layout))  # type: ignore[arg-type]


def packed_entries(program: Program) -> dict[str, int]:
    """How many entries each packed weight and each table in blocks stands for, by the path of its bytes."""
    found = {}
    for sparse in packed_linears(program):
        size = sparse.layout.out_features * sparse.layout.in_features
        experts = program.tensor(sparse.weight).shape[:-1]
        found[sparse.weight] = math.prod(experts) * size
    for block in block_weights(program):
        rows = program.tensor(block.codes).shape[:-2]
        found[block.codes] = math.prod(rows) * block.form.columns
    return found


def unpacked_weight(program: Program, view: PackedLinear) -> Tensor:
    """The weight that a packed linear computes with, float32 `[out, in]`, of experts `[experts, out, in]`."""
    stored = program.tensor(view.weight)
    if not view.stacked:
        return dense(stored, view.layout)
    return torch.stack([dense(expert, view.layout) for expert in stored])


@dataclass(frozen=True)
class Blocks:
    """How a dense weight `[out, columns]` is rounded: `int8` or `int4`, a scale for `group` columns."""

    columns: int
    values: str
    group: int


@dataclass(frozen=True)
class BlockWeight:
    """One use of a weight in blocks: `codes` and `scales` are paths; `bias` is None or a node.

    Of experts `stacked` together each has its own, `[experts, ...]`.
    """

    node: fx.Node
    codes: str
    scales: str
    form: Blocks
    bias: fx.Node | None = None

    @property
    def is_table(self) -> bool:
        """Whether ids pick rows of it."""
        return self.node.target is block_embedding

    @property
    def stacked(self) -> bool:
        """Whether its matrices are those of experts."""
        return self.node.target is block_experts


def block_weights(program: Program) -> list[BlockWeight]:
    """Every linear and table of the program whose weight lies in blocks, in graph order."""
    return [view for node in program.graph.nodes if (view := block_weight_at(node)) is not None]


def block_weight_at(node: fx.Node) -> BlockWeight | None:
    """The weight in blocks that a node reads, if it does."""
    if node.op != "call_function" or node.target not in _IN_BLOCKS:
        return None
    _, codes, scales, *rest = node.args
    assert isinstance(codes, fx.Node)
    assert isinstance(scales, fx.Node)
    third = rest.pop(0) if node.target is not block_embedding else None
    bias = third if node.target is block_linear else None
    assert bias is None or isinstance(bias, fx.Node)
    form = Blocks(*rest)  # type: ignore[arg-type]
    return BlockWeight(node, str(codes.target), str(scales.target), form, bias)


def unblocked_weight(program: Program, view: BlockWeight) -> Tensor:
    """The weight that codes and scales stand for, float32 `[out, columns]`, of experts `[experts, ...]`."""
    codes, scales = program.tensor(view.codes), program.tensor(view.scales)
    form = (view.form.columns, view.form.values)
    if not view.stacked:
        return unpack_blocks(codes, scales, *form)
    each = zip(codes, scales, strict=True)
    return torch.stack([unpack_blocks(own, theirs, *form) for own, theirs in each])
