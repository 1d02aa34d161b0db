"""Neurons left out of a training step: where they lie, how they score, which stay, and at what rate.

A neuron is an attention head, a KV group or a channel. A `Runs` says where the neurons of a site lie
in one dimension of a tensor: runs `[neurons, width]`, neuron after neuron, each `width` indices wide;
`[0, width]` is a run of indices that belong to no neuron.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sparsify.errors import SparsifyError
from sparsify.tensors.seeds import generator_of

Runs = Sequence[Sequence[int]]
# Entries of |W| that are made at once: they stay in the cache.
_PIECE = 1 << 18


def layout_of(numbers: Tensor, size: int) -> list[list[int]]:
    """The layout of a dimension, given for each index `[n]` its neuron, or -1 for none.

    Raises SparsifyError when the neurons `0..size-1` do not lie in equal runs, in order.
    """
    runs: list[list[int]] = []
    start, total = 0, numbers.numel()
    while start < total:
        rest = numbers[start:]
        other = torch.nonzero(rest != rest[0])
        width = int(other[0]) if other.numel() else rest.numel()
        if int(rest[0]) < 0:
            runs.append([0, width])
            start += width
            continue
        span = rest[: size * width]
        if not torch.equal(span, torch.arange(size).repeat_interleave(width)):
            raise SparsifyError("neurons do not lie in equal runs")
        runs.append([size, width])
        start += size * width
    return runs


def positions(kept: Tensor, layout: Runs) -> Tensor:
    """The indices that stay in a dimension, int64, in order, for kept neurons `[k]` in order."""
    found, start = [], 0
    for neurons, width in layout:
        within = torch.arange(width, device=kept.device)
        at = kept[:, None] * width + within if neurons else within
        found.append(start + at.reshape(-1))
        start += max(1, neurons) * width
    return found[0] if len(found) == 1 else torch.cat(found)


def neuron_sums(rows: Tensor, layout: Runs, size: int) -> Tensor:
    """The sum of the scores `[n]` of the indices of each neuron, `[size]`."""
    total, start = rows.new_zeros(size), 0
    for neurons, width in layout:
        length = max(1, neurons) * width
        if neurons:
            total = total + rows[start : start + length].reshape(size, width).sum(1)
        start += length
    return total


def input_statistic(x: Tensor, metric: str) -> Tensor | None:
    """What a metric needs of a block's input `x [..., in]`, `[in]` float32: one pass, no product with W.

    `maxip`: the mean over tokens; `wanda`: the mean square over tokens; None for the others.
    """
    flat = x.detach().reshape(-1, x.shape[-1])
    if metric == "maxip":
        return flat.mean(0).float()
    if metric == "wanda":
        # Squares summed along columns are ten times faster than torch's norm along them.
        return flat.float().square().mean(0)
    return None


def row_scores(weight: Tensor, metric: str, statistic: Tensor | None) -> Tensor:
    """The score of every row of `W [out, in]`, `[out]` float32, from the input statistic `[in]`.

    `uniform`: 1; `magnitude`: `||w_j||_2`; `wanda`: `sum_c |w_jc| ||X_:c||_2` up to a common factor;
    `maxip`: `|<mean x, w_j>|`. Cost O(out * in) whatever the number of tokens. Source: SAT (2406.01392).
    """
    weight = weight.detach()
    if metric == "uniform":
        return torch.ones(weight.shape[0], device=weight.device)
    if metric == "magnitude":
        lengths: Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32)
        return lengths
    assert statistic is not None
    if metric == "maxip":
        return (weight @ statistic.to(weight.dtype)).float().abs()
    norms = statistic.sqrt()
    step = max(1, _PIECE // weight.shape[1])
    pieces = [piece.float().abs() @ norms for piece in torch.split(weight, step)]
    return torch.cat(pieces)


def kept_count(size: int, rate: float, multiple: int) -> int:
    """How many of `size` neurons stay: `(1 - rate) size` to the nearest multiple, at least one of those."""
    if rate == 0:
        return size
    # A half goes up, whatever the last digit of 1 - rate is.
    count = math.floor((1.0 - rate) * size / multiple + 0.5 + 1e-9) * multiple
    return min(size, max(count, multiple))


def choose(scores: Tensor, groups: int, count: int, noise: Tensor | None = None) -> Tensor:
    """The kept neurons, int64 `[groups * count]` in order: the best `count` of each of `groups` equal groups.

    `scores [size]`, not negative. With Gumbel `noise [size]` they are drawn without replacement, each
    with a probability proportional to its score (Gumbel top-k, Kool et al. 2019). Ties go to the first.
    """
    if noise is not None:
        scores = scores.clamp_min(torch.finfo(torch.float32).tiny).log() + noise
    table = scores.reshape(groups, -1)
    best = table.argsort(dim=1, descending=True, stable=True)[:, :count].sort(1).values
    start = torch.arange(groups, device=scores.device)[:, None] * table.shape[1]
    return (best + start).reshape(-1)


def gumbel(size: int, seeds: Iterable[int]) -> Tensor:
    """Gumbel noise `[size]`, float32, from a tuple of seeds: the same on every process."""
    uniform = torch.rand(size, generator=generator_of(seeds)).clamp_min(1e-20)
    return -torch.log((-torch.log(uniform)).clamp_min(1e-20))


def ladder(progress: float, rate: float, hold: float, rungs: int) -> float:
    """The omission rate when a fraction of the steps is done (LORS).

        r(t) = rate                                              progress < hold
        r(t) = rate (1 - ceil(rungs (progress - hold) / (1 - hold)) / rungs)    from there on

    The last rung is 0; with `hold=1` the rate never falls. Source: SAT (2406.01392), whose constants
    are not known.
    """
    if progress < hold or hold >= 1:
        return rate
    # Steps on the border of two rungs belong to the upper one, whatever the last digit says.
    gone = math.ceil(rungs * (progress - hold) / (1 - hold) - 1e-9)
    return rate * (1 - gone / rungs)
