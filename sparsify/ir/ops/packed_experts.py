"""The ops of packed matrices of experts: `nm_linear` and `block_linear`, one product a group of rows."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.ops.block_linear import block_linear
from sparsify.ir.ops.grouped import rows_of_each
from sparsify.ir.ops.nm_linear import nm_linear, packed_axes, stored_product
from sparsify.ir.ops.op import overload, product
from sparsify.tensors.packing.blocks import unpack_blocks
from sparsify.tensors.packing.packed import Layout, dense


@torch.library.custom_op("sparsify::nm_experts", mutates_args=())
def _nm_experts(
    x: Tensor,
    packed: Tensor,
    ends: Tensor | None,
    n: int,
    m: int,
    in_features: int,
    out_features: int,
    values: str,
    group: int,
) -> Tensor:
    """`y = x[rows of e] W_e^T` for every expert e, packed uint8 `[experts, bytes]` as for `nm_linear`.

    `x [rows, in]`, the rows of an expert up to its entry of `ends [experts]`; without `ends` they are
    `x [experts, rows, in]`. Rows behind the last end give zeros. The gradient reaches `x`.
    """
    form = (n, m, in_features, out_features, values, group)
    return _apart(x, ends, out_features, lambda e, rows: nm_linear(rows, packed[e], None, *form))


@torch.library.custom_op("sparsify::block_experts", mutates_args=())
def _block_experts(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    ends: Tensor | None,
    columns: int,
    values: str,
    group: int,
) -> Tensor:
    """`y = R(x[rows of e]) W_e^T` for every expert e, stored as for `block_linear`, `[experts, ...]`.

    `x` and `ends` as for `nm_experts`. The gradient reaches `x`, straight through the rounding.
    """
    form = (columns, values, group)
    return _apart(
        x,
        ends,
        packed.shape[1],
        lambda e, rows: block_linear(rows, packed[e], scales[e], None, *form),
    )


def _apart(
    x: Tensor, ends: Tensor | None, outputs: int, multiply: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """The rows of each expert multiplied by what is its own, `[..., outputs]`."""
    y = x.new_zeros(*x.shape[:-1], outputs)
    for expert, rows in enumerate(rows_of_each(x, ends)):
        if x[rows].numel():
            y[rows] = multiply(expert, x[rows])
    return y


@_nm_experts.register_fake
def _typed_nm(x: Tensor, packed: Tensor, ends: Tensor | None, *numbers: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], Layout(*numbers).out_features)


@_block_experts.register_fake
def _typed_blocks(x: Tensor, packed: Tensor, *others: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], packed.shape[1])


def _keep_nm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, packed, ends, *layout = inputs
    ctx.save_for_backward(packed, ends)
    ctx.layout = Layout(*layout)


def _keep_blocks(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, packed, scales, ends, ctx.columns, ctx.values, _ = inputs
    ctx.save_for_backward(packed, scales, ends)


def _gradients_nm(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """`dx = dy W`."""
    packed, ends = ctx.saved_tensors
    layout = ctx.layout

    def back(expert: int, rows: Tensor) -> Tensor:
        return (rows.float() @ dense(packed[expert], layout)).to(rows.dtype)

    return _apart(gradient, ends, layout.in_features, back), *(None,) * 8


def _gradients_blocks(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """`dx = dy W`."""
    packed, scales, ends = ctx.saved_tensors

    def back(expert: int, rows: Tensor) -> Tensor:
        weight = unpack_blocks(packed[expert], scales[expert], ctx.columns, ctx.values)
        return (rows.float() @ weight).to(rows.dtype)

    return _apart(gradient, ends, ctx.columns, back), *(None,) * 6


_nm_experts.register_autograd(_gradients_nm, setup_context=_keep_nm)
_block_experts.register_autograd(_gradients_blocks, setup_context=_keep_blocks)

# What stands in graphs.
nm_experts = torch.ops.sparsify.nm_experts.default
block_experts = torch.ops.sparsify.block_experts.default
# Which of their arguments says where the rows of each expert end.
ENDS: Mapping[Any, int] = {nm_experts: 2, block_experts: 3}


def _axes(analysis: Any, node: fx.Node, args: dict[str, Any]) -> Any:
    """As of packed linears; the experts stay, too."""
    experts = analysis.axes[args["packed"]][0]
    groups = analysis.axes[args["x" if args["ends"] is None else "ends"]][0]
    analysis.tie(node, groups, experts)
    if "scales" in args:
        analysis.tie(node, experts, analysis.axes[args["scales"]][0])
    return packed_axes(analysis, node, {**args, "bias": args["ends"]})


def _unrounded_nm(x: Tensor, packed: Tensor, ends: Tensor | None, *numbers: Any) -> Tensor:
    layout = Layout(*numbers)
    return _apart(
        x, ends, layout.out_features, lambda e, rows: rows @ dense(packed[e], layout).to(x.dtype).T
    )


def _unrounded_blocks(
    x: Tensor, packed: Tensor, scales: Tensor, ends: Tensor | None, *form: Any
) -> Tensor:
    columns, values, _ = form

    def exact(expert: int, rows: Tensor) -> Tensor:
        weight = unpack_blocks(packed[expert], scales[expert], columns, values)
        return rows @ weight.to(x.dtype).T

    return _apart(x, ends, packed.shape[1], exact)


OPS = (
    overload(nm_experts, _axes, stored_product, unrounded=_unrounded_nm),
    overload(block_experts, _axes, product(0), unrounded=_unrounded_blocks),
)
