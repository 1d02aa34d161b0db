"""Masked low-rank weights as they are trained: multiplied out anew in the backward pass, never kept."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear, linears, own_bias


class _Recomputed(torch.autograd.Function):
    """`y = x (mask * (W + c B A))^T + bias` that keeps nothing `[out, in]` but what it was given."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        mask: Tensor,
        a: Tensor,
        b: Tensor,
        bias: Tensor | None,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mask, a, b)
        ctx.scale, ctx.biased = scale, bias is not None
        # Autocast, where it is on, takes the product in its type.
        return functional.linear(x, _effective(weight, mask, a, b, scale), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        x, weight, mask, a, b = ctx.saved_tensors
        rows = g.reshape(-1, g.shape[-1])
        wanted = ctx.needs_input_grad
        of_x = None
        if wanted[0]:
            of_x = (g @ _effective(weight, mask, a, b, ctx.scale).to(g.dtype)).to(x.dtype)
        product = (rows.T @ x.reshape(-1, x.shape[-1]).to(g.dtype)).to(weight.dtype).mul_(mask)
        of_a = (b.T @ product).mul_(ctx.scale) if wanted[3] else None
        of_b = (product @ a.T).mul_(ctx.scale) if wanted[4] else None
        of_bias = rows.sum(0).to(weight.dtype) if ctx.biased and wanted[5] else None
        return of_x, product if wanted[1] else None, None, of_a, of_b, of_bias, None


def _effective(weight: Tensor, mask: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    with torch.autocast(weight.device.type, enabled=False):  # added to W before it is rounded
        # Not in place on the product, which checkpoints may keep.
        return ((b @ a) * scale).add_(weight).mul_(mask)


def recomputed_linear(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    scale: float,
    transposed: bool,
) -> Tensor:
    """`y = x (mask * (W + c B A))^T + bias`, with `W` and `mask` `[in, out]` when transposed.

    Only x and the factors live on to the backward pass; the product is made there once more. The
    gradient is that of the masked product: `dA = c B^T (mask * G)`, `dB = c (mask * G) A^T`.
    """
    if transposed:
        weight, mask = weight.t(), mask.t()
    y: Tensor = _Recomputed.apply(x, weight, mask, a, b, bias, scale)  # type: ignore[no-untyped-call]
    return y


@contextlib.contextmanager
def recomputed_weights(program: Program) -> Iterator[int]:
    """Masked weights with a branch are recomputed inside the block; how many there are.

    The graph of before stands again afterwards, node for node.
    """
    before = program.module.graph
    program.module.graph = copy.deepcopy(before)
    try:
        views = [view for view in linears(program) if _is_plain(view)]
        for view in views:
            _replace(program, view)
        sweep(program)
        yield len(views)
    finally:
        program.module.graph = before


def _is_plain(view: Linear) -> bool:
    rounded = view.quantizer is not None or view.row_scales is not None
    return view.mask is not None and view.branch is not None and not rounded


def _replace(program: Program, view: Linear) -> None:
    assert view.mask is not None
    assert view.branch is not None
    writer = Writer(program, before=view.node)
    names = (view.weight, view.mask, view.branch.a, view.branch.b)
    reads = [writer.read(path) for path in names]
    new = writer.call(
        recomputed_linear, view.x, *reads, own_bias(view), view.branch.scale, view.transposed
    )
    redirect(view.node, new)
