"""Means over the kept features only: what a norm computes when the other features are gone.

    n = sum of mask,  m = mean of x over kept features = sum(x mask) / n
    masked_mean        m
    masked_layer_norm  (x - m) / sqrt(sum((x - m)^2 mask) / n + eps) * w + b
    masked_rms_norm    x / sqrt(sum(x^2 mask) / n + eps) * w

`x [..., features]`, `mask [features]` boolean, `w`, `b` `[features]`. With an all-true mask each is the
plain op, bitwise. What stands at masked features means nothing: whoever reads it masks it. Of a mask that is
learnt, with values from 0 to 1, all but the zeros are kept features.
"""

from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.ops.op import Op

aten = torch.ops.aten


def masked_mean(x: Tensor, mask: Tensor, dim: list[int], keepdim: bool = False) -> Tensor:
    """The mean of `x [..., features]` over kept features; `dim` is the last one."""
    whole: Tensor = aten.mean.dim(x, dim, keepdim)
    return torch.where(mask.all(), whole, _mean(x, mask, keepdim))


def masked_layer_norm(
    x: Tensor,
    mask: Tensor,
    shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-05,
    cudnn: bool = True,
) -> Tensor:
    """`layer_norm` with mean and variance over kept features."""
    whole: Tensor = aten.layer_norm.default(x, shape, weight, bias, eps, cudnn)
    centred = x - _mean(x, mask, True)
    part = centred * (_mean(centred * centred, mask, True) + eps).rsqrt()
    part = part if weight is None else part * weight
    part = part if bias is None else part + bias
    return torch.where(mask.all(), whole, part)


def masked_rms_norm(
    x: Tensor,
    mask: Tensor,
    shape: list[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """`rms_norm` with the mean square over kept features."""
    whole: Tensor = aten.rms_norm.default(x, shape, weight, eps)
    small = torch.finfo(x.dtype).eps if eps is None else eps
    part = x * (_mean(x * x, mask, True) + small).rsqrt()
    part = part if weight is None else part * weight
    return torch.where(mask.all(), whole, part)


def _mean(x: Tensor, mask: Tensor, keepdim: bool) -> Tensor:
    if mask.dtype != torch.bool:
        # Drawn masks may be zero all over.
        mask = mask != 0
        return (x * mask).sum(-1, keepdim=keepdim) / mask.sum().clamp_min(1)
    return (x * mask).sum(-1, keepdim=keepdim) / mask.sum()


def _norm_axes(analysis: Any, node: fx.Node, args: dict[str, Any]) -> Any:
    """As the plain norm, over the kept features of its last axis."""
    x, mask, dims, *rest = node.args
    analysis.tie(node, analysis.axes[x][-1], analysis.axes[mask][0])
    named = dict(zip(("weight", "bias"), (v for v in rest if isinstance(v, fx.Node)), strict=False))
    norm = analysis.rules[aten.layer_norm.default]
    return norm(analysis, node, {"input": x, "normalized_shape": dims, **named})


def _mean_axes(analysis: Any, node: fx.Node, args: dict[str, Any]) -> Any:
    """As the plain mean, over the kept features of its last axis."""
    x, mask, dims, *rest = node.args
    analysis.tie(node, analysis.axes[x][-1], analysis.axes[mask][0])
    mean = analysis.rules[aten.mean.dim]
    return mean(
        analysis, node, {"self": x, "dim": dims, "keepdim": (*rest, False)[0], "mean": True}
    )


OPS = (
    Op(masked_mean, "sparsify.masked_mean", _mean_axes),
    Op(masked_layer_norm, "sparsify.masked_layer_norm", _norm_axes),
    Op(masked_rms_norm, "sparsify.masked_rms_norm", _norm_axes),
)
