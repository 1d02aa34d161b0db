"""masks: boolean keep-masks from scores; True is kept, the larger score is kept.

Two rules hold everywhere, so that a choice is the same on every machine and at every run:
counts are exact, and among equal scores the lower index (row by row) is kept.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.precision import check_matrix, shape_of
from sparsify.tensors.threshold import CHUNK, chunks, cut_at

_NAN = "a score is NaN, so nothing can be chosen; mend the weights or their statistics first"


def zeros_of(size: int, sparsity: float) -> int:
    """Return how many of `size` entries a sparsity prunes: `floor(size * sparsity)`.

    A hair is added to the sparsity first: 100 * 0.29 is 28.999... in binary floats, and who
    writes 0.29 means 29.

    Args:
        size: number of entries.
        sparsity: fraction of zeros, in [0, 1).

    Raises:
        OptionError: when the sparsity is outside [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise OptionError(f"sparsity {sparsity} is not in [0, 1): it is the fraction of zeros")
    return math.floor(size * (sparsity + 1e-12))


def zeroed(weight: Tensor, mask: Tensor) -> Tensor:
    """Return the weight with zeros where its mask is False; infinite entries and NaN go as well."""
    return torch.where(mask, weight, torch.zeros_like(weight))


def keep_top(scores: Tensor, count: int) -> Tensor:
    """Keep exactly the `count` best entries of one tensor.

    Args:
        scores: any shape.
        count: from 0 to the number of entries.

    Returns:
        Keep-mask of the shape of the scores.

    Raises:
        OptionError: when there are not that many entries.
        SparsifyError: when a score is NaN.
    """
    if not 0 <= count <= scores.numel():
        raise OptionError(f"{count} entries cannot be kept of {scores.numel()}")
    return _keep_best([scores], count)[0]


def keep_global(scores: Tensor, sparsity: float) -> Tensor:
    """Prune exactly `floor(numel * sparsity)` entries of one tensor, wherever they are.

    Args:
        scores: any shape, often [out, in].
        sparsity: fraction of zeros, in [0, 1).

    Returns:
        Keep-mask of the shape of the scores.

    Raises:
        OptionError: when the sparsity is outside [0, 1).
        SparsifyError: when a score is NaN.
    """
    return keep_across([scores], sparsity)[0]


def keep_across(scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Prune exactly `floor(total * sparsity)` entries of several tensors by one threshold.

    Equal scores at the threshold are kept in the order of the list, then of the index.

    Args:
        scores: tensors of any shapes; half precision and float32 are compared in float32, and
            all in float64 when one of them is.
        sparsity: fraction of zeros over all tensors together, in [0, 1).

    Returns:
        One keep-mask for each tensor, of its shape.

    Raises:
        OptionError: when the sparsity is outside [0, 1).
        SparsifyError: when a score is NaN.

    Source: Lin et al. 2020 (DPF, 2006.07253): one magnitude threshold over the whole network.
    """
    total = sum(score.numel() for score in scores)
    return _keep_best(scores, total - zeros_of(total, sparsity))


def keep_affordable(
    scores: Sequence[Tensor], costs: Sequence[float], sparsity: float
) -> list[Tensor]:
    """Prune the lowest entries of several tensors while their costs stay within a budget.

    Entries of all tensors are ranked together; from the lowest on they go as long as the sum of
    their costs is at most `sparsity` of the cost of all. With equal costs this is `keep_across`.

    Args:
        scores: small tensors of any shapes (they are sorted).
        costs: of one entry of each tensor, the parameters it takes along say.
        sparsity: fraction of the total cost that goes, in [0, 1).

    Returns:
        One keep-mask for each tensor, of its shape.

    Raises:
        OptionError: when the sparsity is outside [0, 1).
        SparsifyError: when a score is NaN.

    Source: FLAP (2312.11983), its code: one threshold over heads and neurons, weighted by size.
    """
    zeros_of(0, sparsity)
    flat = torch.cat([score.detach().double().reshape(-1) for score in scores])
    if flat.isnan().any():
        raise SparsifyError(_NAN)
    price = torch.cat(
        [torch.full((s.numel(),), c).double() for s, c in zip(scores, costs, strict=True)]
    )
    order = flat.argsort(descending=True, stable=True).flip(0)
    # a hair more, as in zeros_of: the budget of what adds up exactly must not be missed by rounding
    gone = price[order].cumsum(0) <= float(price.sum()) * (sparsity + 1e-12)
    mask = torch.ones(len(flat), dtype=torch.bool)
    mask[order[gone]] = False
    parts = torch.split(mask, [score.numel() for score in scores])
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]


def keep_rows(scores: Tensor, sparsity: float) -> Tensor:
    """Prune exactly `floor(in * sparsity)` entries of every row.

    Args:
        scores: [out, in].
        sparsity: fraction of zeros in each row, in [0, 1).

    Returns:
        Keep-mask [out, in].

    Raises:
        OptionError: when the sparsity is outside [0, 1).
        SparsifyError: when the scores are no matrix or one is NaN.

    Source: Sun et al. 2023 (Wanda, 2306.11695), section 3: weights compared per output.
    """
    check_matrix(scores, "the tensor of scores")
    inputs = scores.shape[1]
    return _best_in_rows(scores, inputs - zeros_of(inputs, sparsity))


def keep_nm(scores: Tensor, pattern: Pattern) -> Tensor:
    """Keep the N best of every M consecutive entries of every row.

    Args:
        scores: [out, in].
        pattern: N kept of every M.

    Returns:
        Keep-mask [out, in].

    Raises:
        OptionError: when M does not divide `in`.
        SparsifyError: when the scores are no matrix or one is NaN.

    Source: Mishra et al. 2021 (2104.08378) for 2:4 by magnitude; any N:M and score here.
    """
    check_matrix(scores, "the tensor of scores")
    pattern.check_axis(scores.shape[1], "the tensor of scores")
    return _best_in_rows(scores.reshape(-1, pattern.m), pattern.n).reshape(scores.shape)


def check_nm(mask: Tensor, pattern: Pattern) -> None:
    """Refuse a mask in which a group does not keep exactly N of its M entries.

    Args:
        mask: keep-mask [out, in], boolean.
        pattern: N kept of every M.

    Raises:
        OptionError: when M does not divide `in`.
        SparsifyError: when it is no boolean matrix, or with the first group that breaks the
            pattern (rows from the top, groups from the left, both counted from 0).
    """
    check_matrix(mask, "the mask")
    if mask.dtype != torch.bool:
        raise SparsifyError(f"the mask {shape_of(mask)} must be boolean, but it is {mask.dtype}")
    pattern.check_axis(mask.shape[1], "the mask")
    kept = mask.reshape(len(mask), -1, pattern.m).sum(2)
    wrong = (kept != pattern.n).nonzero()
    if len(wrong):
        row, group = wrong[0].tolist()
        first = group * pattern.m
        raise SparsifyError(
            f"row {row}, group {group} (columns {first} to {first + pattern.m - 1}) keeps "
            f"{int(kept[row, group])} of {pattern.m}, but pattern {pattern} keeps {pattern.n}"
        )


def _keep_best(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Keep the `count` best entries of all tensors together."""
    masks = [torch.zeros(s.shape, dtype=torch.bool, device=s.device) for s in scores]
    if count == 0:
        return masks
    cut = cut_at(scores, count)
    ties = cut.ties
    for score, mask in zip(scores, masks, strict=True):
        flat = mask.view(-1)
        for start, chunk in chunks(score, cut.dtype):
            flat[start : start + len(chunk)] = chunk > cut.value
            tied = (chunk == cut.value).nonzero().flatten()
            flat[start + tied[:ties]] = True
            ties = max(0, ties - len(tied))
    return masks


def _best_in_rows(rows: Tensor, count: int) -> Tensor:
    """Keep the `count` best entries of every row of [rows, size], a slab of rows at a time."""
    rows = rows.detach()
    mask = torch.empty(rows.shape, dtype=torch.bool, device=rows.device)
    step = max(1, CHUNK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        mask[start : start + step] = _best_in_slab(rows[start : start + step], count)
    return mask


def _best_in_slab(rows: Tensor, count: int) -> Tensor:
    """Keep the `count` best entries of every row of [rows, size] at once."""
    if rows.isnan().any():
        raise SparsifyError(_NAN)
    # only the value at the edge is asked of topk: which of equal entries it would take is not
    # defined, so ties are counted off here
    edge = rows.topk(count, dim=1, sorted=False).values.amin(1, keepdim=True)
    above = rows > edge
    tied = rows == edge
    spare = count - above.sum(1, keepdim=True)
    return above | (tied & (tied.cumsum(1, dtype=torch.int32) <= spare))
