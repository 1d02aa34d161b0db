"""dsnot: swap kept and pruned weights of each row until the mean of what was lost is near zero."""

import torch
from torch import Tensor

from sparsify.tensors.pattern import Pattern
from sparsify.tensors.precision import widen


def dsnot(
    weight: Tensor,
    mask: Tensor,
    score: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    pattern: Pattern | None = None,
    swaps: int = 50,
    enough: float = 0.1,
) -> Tensor:
    """Improve a mask without changing a weight: every swap lowers `|e_i| = |sum_{pruned j} W_ij mean_j|`.

    In each row, while e is larger than `enough` and keeps its sign: of the pruned weights that
    would take from e the one of largest `|W_ij mean_j| / variance_j` comes back, and of the kept
    ones whose loss takes from e too the one of least score goes. With a pattern both are of the
    same group. A row stops where no such pair is left.

    Args:
        weight: W [out, in].
        mask: keep-mask [out, in] to start from.
        score: what kept weights are worth [out, in], as Wanda's.
        mean: mean of each input [in].
        variance: of each input [in].
        pattern: keep N of every M consecutive inputs.
        swaps: the most in a row.
        enough: the mean loss at which a row is left alone.

    Returns:
        The new keep-mask [out, in]; every row keeps as many as before.

    Source: Zhang et al. 2024 (DSnoT, 2310.08915), section 3, algorithm 1.
    """
    effect = widen(weight) * widen(mean)
    gain = effect.abs() / widen(variance).clamp_min(torch.finfo(torch.float32).tiny)
    kept = mask.clone()
    loss = (effect * ~kept).sum(1)
    sign = loss.sign()
    active = loss.abs() > enough
    rows = torch.arange(len(kept), device=kept.device)
    for _ in range(swaps):
        grow, prune, found = _pair(kept, effect * sign[:, None], gain, score, pattern)
        active &= found
        new = loss - effect[rows, grow] + effect[rows, prune]
        if not bool(active.any()):
            break
        chosen = rows[active]
        kept[chosen, grow[active]] = True
        kept[chosen, prune[active]] = False
        loss = torch.where(active, new, loss)
        active &= (loss.sign() == sign) & (loss.abs() > enough)
    return kept


def _pair(
    kept: Tensor, toward: Tensor, gain: Tensor, score: Tensor, pattern: Pattern | None
) -> tuple[Tensor, Tensor, Tensor]:
    """In each row the weight to bring back and the one to drop, and whether there are both."""
    endless = float("inf")
    can_grow = ~kept & (toward > 0)
    can_go = kept & (toward < 0)
    if pattern is not None:
        can_grow &= _in_group(can_go, pattern.m)
    grow = gain.masked_fill(~can_grow, -1).argmax(1)
    if pattern is not None:
        groups = torch.arange(kept.shape[1], device=kept.device) // pattern.m
        can_go &= groups[None] == groups[grow][:, None]
    prune = score.masked_fill(~can_go, endless).argmin(1)
    return grow, prune, can_grow.any(1) & can_go.any(1)


def _in_group(flags: Tensor, m: int) -> Tensor:
    """Whether any flag of an entry's group of M is set."""
    groups = flags.view(len(flags), -1, m).any(2, keepdim=True)
    return groups.expand(-1, -1, m).reshape(flags.shape)
