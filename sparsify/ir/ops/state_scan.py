"""The op `sparsify::state_scan`: a state that runs along a sequence and is read at each step.

    S_t = a_t * S_{t-1} + u_t k_t^T,    y_t = S_t q_t
    u_t = v_t, or with a rate  u_t = r_t (v_t - (a_t * S_{t-1}) k_t)

`S [batch, heads, rows, columns]`. With one head and a decay for each entry it is the selective scan of Mamba
(2312.00752, algorithm 2), with one for each head that of Mamba-2 (2405.21060, section 3), with a rate the
gated delta rule (2412.06464, equation 10).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.ops.op import opname, overload
from sparsify.ir.ops.steps import gradients_of, keep_inputs


def _scan(
    decay: Tensor,
    values: Tensor,
    keys: Tensor,
    queries: Tensor,
    rate: Tensor | None,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    batch, length, heads, rows = values.shape
    if state is None:
        state = values.new_zeros(batch, heads, rows, keys.shape[-1])
    found = []
    for t in range(length):
        state = decay[:, t] * state
        key = keys[:, t, :, None]
        update = values[:, t, :, :, None]
        if rate is not None:
            seen = (state * key).sum(-1, keepdim=True)
            update = (update - seen) * rate[:, t, :, None, None]
        state = state + update * key
        found.append((state * queries[:, t, :, None]).sum(-1))
    return torch.stack(found, 1), state


@torch.library.custom_op("sparsify::state_scan", mutates_args=())
def _state_scan(
    decay: Tensor,
    values: Tensor,
    keys: Tensor,
    queries: Tensor,
    rate: Tensor | None,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`y [batch, length, heads, rows]` and the last state; of one dtype, zeros where no `state` is given.

    `decay [batch, length, heads, rows or 1, columns or 1]`, `values [batch, length, heads, rows]`, `keys`
    and `queries [batch, length, heads, columns]`, `rate [batch, length, heads]`,
    `state [batch, heads, rows, columns]`.
    """
    found, last = _scan(decay, values, keys, queries, rate, state)
    return found, last.contiguous()


@_state_scan.register_fake
def _typed(
    decay: Tensor,
    values: Tensor,
    keys: Tensor,
    queries: Tensor,
    rate: Tensor | None,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    batch, _, heads, rows = values.shape
    return torch.empty_like(values), values.new_empty(batch, heads, rows, keys.shape[-1])


_state_scan.register_autograd(gradients_of(_scan), setup_context=keep_inputs)

# What stands in graphs.
state_scan = torch.ops.sparsify.state_scan.default


def _axes(analysis: Any, node: fx.Node, args: dict[str, Any]) -> Any:
    """Heads and rows go each their own way; columns are summed over where the state is read."""
    decay, values, keys, queries = (
        analysis.axes[args[name]] for name in ("decay", "values", "keys", "queries")
    )
    analysis.mixing.append(node)
    batch, length, heads, rows = values
    columns = keys[-1]
    columns.pin(f"{opname(node)} at {node.name} runs over it")
    pairs = [*zip(decay, (batch, length, heads, rows, columns), strict=True)]
    pairs += [*zip(keys, (batch, length, heads, columns), strict=True)]
    pairs += [*zip(queries, (batch, length, heads, columns), strict=True)]
    if args["rate"] is not None:
        pairs += zip(analysis.axes[args["rate"]], (batch, length, heads), strict=True)
    if args["state"] is not None:
        pairs += zip(analysis.axes[args["state"]], (batch, heads, rows, columns), strict=True)
    for one, other in pairs:
        analysis.tie(node, one, other)
    return [list(values), [batch, heads, rows, columns]]


def _cost(args: Sequence[Any], result: Any) -> int:
    """The state is written and read at each step, and with a rate it is read once more."""
    columns, products = args[2].shape[-1], 2 if args[4] is None else 3
    return int(result[0].numel() * columns * products)


OPS = (overload(state_scan, _axes, _cost),)
