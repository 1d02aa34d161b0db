"""The op `sparsify::scale_weight`: learnable scales for blocks of the rows of a weight."""

from typing import Any

import torch
from torch import Tensor

from sparsify.ir.ops.op import overload


@torch.library.custom_op("sparsify::scale_weight", mutates_args=())
def _scale_weight(weight: Tensor, scales: Tensor, transposed: bool = False) -> Tensor:
    """`W'_ij = A_ib W_ij`, b the block of column j: every row has `blocks` equal blocks of columns.

    `W [out, in]`, or `[in, out]` when `transposed`; `A [out, blocks]`; of experts `[experts, ...]`.
    Source: CAST (2509.25996), equations 11 and 12.
    """
    return (weight * _wide(weight, scales, transposed)).contiguous()


def _wide(weight: Tensor, scales: Tensor, transposed: bool) -> Tensor:
    inputs = weight.shape[-2 if transposed else -1]
    wide = scales.repeat_interleave(inputs // scales.shape[-1], -1)
    return wide.mT if transposed else wide


@_scale_weight.register_fake
def _typed(weight: Tensor, scales: Tensor, transposed: bool = False) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, scales, ctx.transposed = inputs
    ctx.save_for_backward(weight, scales)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    weight, scales = ctx.saved_tensors
    product = gradient * weight
    rows = product.mT if ctx.transposed else product
    of_scales = rows.reshape(*scales.shape, -1).sum(-1)
    return gradient * _wide(weight, scales, ctx.transposed), of_scales, None


_scale_weight.register_autograd(_backward, setup_context=_remember)

# What stands in graphs.
scale_weight = torch.ops.sparsify.scale_weight.default
OPS = (overload(scale_weight),)
