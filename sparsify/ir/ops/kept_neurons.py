"""The ops of omission: which neurons stay, and tensors without the others.

At rest, and whenever all neurons stay, each is the identity; inside `choosing` another function stands
in place of `kept_neurons`. They are plain functions, since an op of torch may not return its input.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsify.ir.ops.op import Op
from sparsify.tensors.omission import Runs, positions


def kept_neurons(
    x: Tensor,
    every: Tensor,
    weights: Sequence[Tensor],
    layouts: Sequence[Runs],
    dims: Sequence[int],
    metric: str,
    select: str,
    groups: int,
    multiple: int,
) -> Tensor:
    """The neurons of a site that stay, int64 `[k]` in order; at rest `every [size]`, all of them.

    `x [..., in]` is the block's input; `weights` make the neurons from it, `layouts` and `dims` say
    where in which dimension. As many neurons stay in each of `groups`, in multiples of `multiple`.
    """
    return every


def keep_rows(tensor: Tensor, kept: Tensor, dim: int, layout: Runs) -> Tensor:
    """A tensor without the omitted neurons in one dimension; its gradient is zero for those.

    The tensor itself when all stay.
    """
    if _all_stay(kept, layout):
        return tensor
    rows: Tensor = _Rows.apply(tensor, positions(kept, layout), dim)  # type: ignore[no-untyped-call]
    return rows


def zero_omitted(x: Tensor, kept: Tensor, layout: Runs) -> Tensor:
    """`x [..., in]` times zero at the omitted neurons: omission without its speed, to compare with."""
    if _all_stay(kept, layout):
        return x
    return x * x.new_zeros(x.shape[-1]).index_fill_(0, positions(kept, layout), 1.0)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, index: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(index)
        ctx.dim, ctx.size = dim, tensor.shape
        return tensor.index_select(dim, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        # Indices are distinct: copying does what adding would.
        whole = gradients[0].new_zeros(ctx.size)
        return whole.index_copy_(ctx.dim, index, gradients[0]), None, None


def _all_stay(kept: Tensor, layout: Runs) -> bool:
    return bool(kept.shape[0] == max(neurons for neurons, _ in layout))


OPS = (
    Op(kept_neurons, "sparsify.kept_neurons"),
    Op(keep_rows, "sparsify.keep_rows"),
    Op(zero_omitted, "sparsify.zero_omitted"),
)
