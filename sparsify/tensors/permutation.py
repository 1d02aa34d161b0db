"""Orders of input channels under which an N:M pattern keeps more of a score."""

import torch
from torch import Tensor

from sparsify.tensors.masks import keep_nm
from sparsify.tensors.pattern import Pattern


def kept_score(scores: Tensor, pattern: Pattern) -> float:
    """What an N:M pattern keeps of scores `[rows, size]`, summed."""
    return float((scores * keep_nm(scores, pattern)).sum(dtype=torch.float64))


def spread(scores: Tensor, pattern: Pattern, rounds: int = 8) -> Tensor:
    """An order of the channels, so that good ones do not meet in one group of M.

    Channels are sorted by what they score in all and dealt to the groups in turns. Then one place of every
    group is emptied at a time and its channels are handed out again in the best way that there is: of a
    group whose other scores are `b_1 >= b_2 >= ...` in a row, channel x keeps `max(b_N, x)` more, so that
    the assignment with the largest `sum |b_N - x|` over rows and groups is wanted. Each step keeps at least
    as much as the one before; it ends when a round over all M places gains nothing, or after `rounds`.

    Args:
        scores: S [rows, size], not negative; rows of all matrices that read the channels.
        pattern: N kept of every M consecutive channels; M divides size.
        rounds: passes over the places at most.

    Returns:
        order [size]: channel `order[i]` goes to place i. Never worse than leaving all in place.

    Source: Zhang et al. 2024 (RIA, Plug-and-Play, ICLR), section 4; there with the first round alone.
    """
    size = scores.shape[1]
    pattern.check_axis(size, "the axis to reorder")
    groups = size // pattern.m
    # Dealt in turns: place p of group g is channel number p * groups + g by score.
    ranked = scores.sum(0).argsort(descending=True, stable=True)
    grid = ranked.view(pattern.m, groups).t().contiguous()
    best = kept_score(scores[:, grid.flatten()], pattern)
    for _ in range(rounds):
        for place in range(pattern.m):
            grid[:, place] = _handed_out(scores, grid, place, pattern.n)
        reached = kept_score(scores[:, grid.flatten()], pattern)
        if reached <= best:
            break
        best = reached
    order = grid.flatten()
    return order if best > kept_score(scores, pattern) else torch.arange(size)


def _handed_out(scores: Tensor, grid: Tensor, place: int, n: int) -> Tensor:
    """The channels `[groups]` of one place, each in its best group `[groups, M]`."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and wanted here alone

    others = torch.cat([grid[:, :place], grid[:, place + 1 :]], 1)
    bar = scores[:, others].topk(n, dim=2).values[:, :, -1]
    freed = grid[:, place]
    gain = torch.cdist(bar.t().contiguous(), scores[:, freed].t().contiguous(), p=1.0)
    _, chosen = linear_sum_assignment(gain.numpy(), maximize=True)
    return freed[torch.from_numpy(chosen)]
