"""The op of a store behind a head: logits mixed with what the nearest neighbours of its input say."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.ops.op import Op
from sparsify.tensors.neighbours import mixed, neighbour_weights, retrieved, similarities


def mix_neighbours(
    logits: Tensor,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    share: Tensor,
    temperature: Tensor,
    k: int,
    cosine: bool,
) -> Tensor:
    """`log((1 - c) softmax(logits) + c r(x))`, the logits `[..., C]` themselves where the share c is 0.

    `x [..., d]`, `keys [N, d]`, `values [N]` or `[N, C]`; `sparsify.tensors.neighbours` has the formulas. At
    least float32 throughout.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    s = similarities(x.to(wide), keys.to(wide), cosine=cosine)
    weights = neighbour_weights(s, temperature.to(wide), k)
    if values.is_floating_point():
        values = values.to(wide)
    found = retrieved(weights, values, logits.shape[-1])
    return mixed(logits.to(wide), found, share.to(wide)).to(logits.dtype)


def _axes(analysis: Any, node: fx.Node, args: dict[str, Any]) -> Any:
    """Keys were made of x as it is: it stays, and so do the classes."""
    logits, x, keys, values, *_ = node.all_input_nodes
    for axis in (analysis.axes[x][-1], *analysis.axes[keys]):
        axis.pin(f"@{keys.target} holds values of it")
    for axis in (analysis.axes[logits][-1], *analysis.axes[values]):
        axis.pin(f"@{values.target} speaks of its indices")
    return list(analysis.axes[logits])


def _cost(args: Sequence[Any], result: Tensor) -> int:
    """Every row of the store against every query, and dense values times their weights."""
    keys, values = args[2], args[3]
    queries = result.numel() // result.shape[-1]
    return int(queries * (keys.numel() + (values.numel() if values.dim() == 2 else 0)))


OPS = (Op(mix_neighbours, "sparsify.mix_neighbours", _axes, _cost),)
