"""The op `sparsify::decayed_mean`: a mean of all values so far, by weights that fade with each step.

    y_t = (n_{t-1} + e^{b + k_t} v_t) / (d_{t-1} + e^{b + k_t})
    n_t = e^{-w} n_{t-1} + e^{k_t} v_t,    d_t = e^{-w} d_{t-1} + e^{k_t}

Channel by channel, with the decay `w [channels]` and the bonus `b [channels]` of the token at hand: the time
mixing of RWKV (2305.13048, equations 14 to 16). A state holds `n e^{-m}`, `d e^{-m}` and `m`, by which no
exponential overflows (its appendix on numerical stability); one whose `d` is 0 has seen nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.ops.op import overload
from sparsify.ir.ops.steps import gradients_of, keep_inputs

# The exponent of a sum of nothing.
NOTHING = -1e38


def _mean(
    decay: Tensor, bonus: Tensor, keys: Tensor, values: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, length, channels = keys.shape
    if state is None:
        state = keys.new_zeros(batch, 3, channels)
    above, below, most = state.unbind(1)
    most = torch.where(below == 0, NOTHING, most)
    found = []
    for t in range(length):
        key, value = keys[:, t], values[:, t]
        scale = torch.maximum(most, key + bonus)
        old, new = torch.exp(most - scale), torch.exp(key + bonus - scale)
        found.append((old * above + new * value) / (old * below + new))
        scale = torch.maximum(most - decay, key)
        old, new = torch.exp(most - decay - scale), torch.exp(key - scale)
        above, below, most = old * above + new * value, old * below + new, scale
    return torch.stack(found, 1), torch.stack([above, below, most], 1)


@torch.library.custom_op("sparsify::decayed_mean", mutates_args=())
def _decayed_mean(
    decay: Tensor, bonus: Tensor, keys: Tensor, values: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`y [batch, length, channels]` and the last state; of one dtype, an empty sum where no `state` is given.

    `decay`, `bonus` `[channels]`, `keys`, `values` `[batch, length, channels]`, `state [batch, 3, channels]`:
    numerators, denominators and their exponents.
    """
    return _mean(decay, bonus, keys, values, state)


@_decayed_mean.register_fake
def _typed(
    decay: Tensor, bonus: Tensor, keys: Tensor, values: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, _, channels = keys.shape
    return torch.empty_like(keys), keys.new_empty(batch, 3, channels)


_decayed_mean.register_autograd(gradients_of(_mean), setup_context=keep_inputs)

# What stands in graphs.
decayed_mean = torch.ops.sparsify.decayed_mean.default


def _axes(analysis: Any, node: fx.Node, args: dict[str, Any]) -> Any:
    """Each channel goes its own way."""
    decay, bonus, keys, values = (
        analysis.axes[args[name]] for name in ("decay", "bonus", "keys", "values")
    )
    analysis.mixing.append(node)
    batch, length, channels = values
    parts = analysis.fresh(3, f"the parts of the state of {node.name}")
    pairs = [*zip(keys, values, strict=True), (decay[0], channels), (bonus[0], channels)]
    if args["state"] is not None:
        pairs += zip(analysis.axes[args["state"]], (batch, parts, channels), strict=True)
    for one, other in pairs:
        analysis.tie(node, one, other)
    return [[batch, length, channels], [batch, parts, channels]]


def _cost(args: Sequence[Any], result: Any) -> int:
    """Numerator and denominator, each read and each written at every step."""
    return int(result[0].numel() * 4)


OPS = (overload(decayed_mean, _axes, _cost),)
