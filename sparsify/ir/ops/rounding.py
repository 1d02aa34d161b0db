"""The ops `sparsify::quantize_weight` and `sparsify::quantize_activations`: rounding as the kernels do it."""

from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.ops.op import overload
from sparsify.tensors.packing.layout import CODES
from sparsify.tensors.quantize import round_activations


@torch.library.custom_op("sparsify::quantize_weight", mutates_args=())
def _quantize_weight(
    weight: Tensor, scales: Tensor, values: str, group: int, transposed: bool = False
) -> Tensor:
    """`W' = scale * clamp(round(W / scale), -q, q)` where a scale is set, `W` itself where it is zero.

    `W [out, in]`, or `[in, out]` when `transposed`; `scales` float16 `[out, groups]`, one for `group`
    consecutive inputs; of experts both are `[experts, ...]`; `q` is 127 (`values` int8) or 7 (int4). The
    gradient goes straight through to `W`, beyond the last code too (Bengio et al. 2013, 1308.3432).
    """
    rows = weight.mT if transposed else weight
    wide = scales.float().repeat_interleave(group, -1)[..., : rows.shape[-1]]
    # The arithmetic of `quantize.round_weight`, which refuses NaN: here it flows on into the loss.
    codes = (rows.float() / wide).round_().clamp_(-CODES[values], CODES[values])
    rounded = torch.where(wide == 0, rows, (codes * wide).to(rows.dtype))
    return (rounded.mT if transposed else rounded).contiguous()


@torch.library.custom_op("sparsify::quantize_activations", mutates_args=())
def _quantize_activations(x: Tensor, on: Tensor, group: int) -> Tensor:
    """`x' = s * round(x / s)` with `s = max |x| / 127` of each token and group; `x` while `on` is false.

    `x [..., in]`, `on` boolean `[]`, `group` consecutive inputs share `s`: what the kernels do to their
    input, docs/packed.md. The gradient goes straight through to `x`.
    """
    if not bool(on):
        return x.clone(memory_format=torch.contiguous_format)
    codes, steps = round_activations(x, group)
    wide = steps.repeat_interleave(group, -1)[..., : x.shape[-1]]
    return (codes[..., : x.shape[-1]] * wide).to(x.dtype)


@_quantize_weight.register_fake
@_quantize_activations.register_fake
def _typed(x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _straight_through(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return gradient, *(None,) * ctx.others


def _count(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.others = len(inputs) - 1


for _op in (_quantize_weight, _quantize_activations):
    _op.register_autograd(_straight_through, setup_context=_count)

# What stands in graphs.
quantize_weight = torch.ops.sparsify.quantize_weight.default
quantize_activations = torch.ops.sparsify.quantize_activations.default


def _weight_axes(analysis: Any, node: fx.Node, args: dict[str, Any]) -> Any:
    """A weight `[out, in]` rounded with scales `[out, groups]`: groups of its inputs stay together."""
    axes = analysis.axes[args["weight"]]
    for axis in (*axes, *analysis.axes[args["scales"]]):
        axis.pin(f"rounded in groups at {node.name}")
    return list(axes)


def _input_axes(analysis: Any, node: fx.Node, args: dict[str, Any]) -> Any:
    """`x[..., in]` rounded in groups of its last axis."""
    axes = analysis.axes[args["x"]]
    axes[-1].pin(f"rounded in groups at {node.name}")
    return list(axes)


OPS = (
    overload(quantize_weight, _weight_axes),
    overload(quantize_activations, _input_axes, unrounded=lambda x, *_: x),
)
