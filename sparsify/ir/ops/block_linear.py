"""The ops of dense weights stored as blocks of codes: a linear, and a table that ids pick rows of."""

from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.ops.nm_linear import exact_product, packed_axes
from sparsify.ir.ops.op import opname, overload, product
from sparsify.tensors.packing.blocks import unpack_blocks
from sparsify.tensors.quantize import round_activations


@torch.library.custom_op("sparsify::block_linear", mutates_args=())
def _block_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    columns: int,
    values: str,
    group: int,
) -> Tensor:
    """`y[..., out] = R(x)[..., in] W^T + b`, `W` uint8 `[out, blocks, bytes]` and float16 `[out, blocks]`.

    `R` rounds the input to int8 for each token and `group` of inputs, docs/packed.md. Computed in float32
    by unpacking, returned in the dtype of `x`. The gradient reaches `x`, straight through the rounding,
    and the bias.
    """
    codes, steps = round_activations(x, group)
    wide = steps.repeat_interleave(group, -1)
    near = (codes * wide)[..., :columns]
    weight = unpack_blocks(packed, scales, columns, values)
    added = None if bias is None else bias.float()
    return torch.nn.functional.linear(near, weight, added).to(x.dtype)


@_block_linear.register_fake
def _typed_linear(x: Tensor, packed: Tensor, *others: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], packed.shape[0])


@torch.library.custom_op("sparsify::block_embedding", mutates_args=())
def _block_embedding(
    ids: Tensor, packed: Tensor, scales: Tensor, columns: int, values: str, group: int
) -> Tensor:
    """Rows `[..., columns]` of a table by ids `[...]`; stored as for `block_linear`, float32."""
    return unpack_blocks(packed[ids], scales[ids], columns, values)


@_block_embedding.register_fake
def _typed_embedding(
    ids: Tensor, packed: Tensor, scales: Tensor, columns: int, *others: Any
) -> Tensor:
    return scales.new_empty(*ids.shape, columns, dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, packed, scales, bias, columns, values, _ = inputs
    ctx.save_for_backward(packed, scales)
    ctx.columns, ctx.values = columns, values
    ctx.bias = None if bias is None else bias.dtype


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """`dx = dy W`, `db = sum of dy over tokens`."""
    of_x = of_bias = None
    if ctx.needs_input_grad[0]:
        packed, scales = ctx.saved_tensors
        weight = unpack_blocks(packed, scales, ctx.columns, ctx.values)
        of_x = (gradient.float() @ weight).to(gradient.dtype)
    if ctx.bias is not None and ctx.needs_input_grad[3]:
        of_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0, dtype=torch.float32).to(ctx.bias)
    return of_x, None, None, of_bias, None, None, None


_block_linear.register_autograd(_gradients, setup_context=_keep)

# What stands in graphs.
block_linear = torch.ops.sparsify.block_linear.default
block_embedding = torch.ops.sparsify.block_embedding.default


def _table_axes(analysis: Any, node: fx.Node, args: dict[str, Any]) -> Any:
    """Rows of a packed table by number."""
    reason = f"packed into the bytes of {opname(node)} at {node.name}"
    for axis in (*analysis.axes[args["packed"]], *analysis.axes[args["scales"]]):
        axis.pin(reason)
    width = analysis.fresh(args["columns"], reason)
    analysis.widths.append(width)
    return [*analysis.axes[args["ids"]], width]


def _unrounded(
    x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, *form: Any
) -> Tensor:
    columns, values, _ = form
    return exact_product(x, unpack_blocks(packed, scales, columns, values), bias)


OPS = (
    overload(block_linear, packed_axes, product(0), unrounded=_unrounded),
    overload(block_embedding, _table_axes),
)
