"""sparsegpt: prune a weight column by column and let the later columns repair the loss.

For each output row the layer problem is `min ||X w - X w'||^2` under a mask. Columns are fixed
from left to right; what pruning column j loses is made good, exactly in the least-squares
sense, by the columns still free (optimal brain surgeon). One factor of the inverse Gram matrix
serves all rows and all steps:

    H = gram / mean(diag gram) + damping I,   H^-1 = U^T U,   U upper triangular
    score_ij = W_ij^2 / U_jj^2,   e_i = (W_ij - keep(W_ij)) / U_jj,   W_i,j: -= e_i U_j,j:

With a grid what is kept is rounded in the same sweep, `keep(W_ij)` then is 0 or on the grid, and the
later columns repair both losses at once.

Source: Frantar and Alistarh 2023 (SparseGPT, 2301.00774), section 3, algorithm 1; for rounding alone
Frantar et al. 2022 (GPTQ, 2210.17323).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors.factor import inverse_factor
from sparsify.tensors.masks import keep_nm, keep_top, zeros_of
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.precision import check_finite, check_matrix, shape_of, widen
from sparsify.tensors.quantize import Grid, largest_code, nearest


def sparsegpt(
    weight: Tensor,
    gram: Tensor,
    *,
    sparsity: float | None = None,
    pattern: Pattern | None = None,
    mask: Tensor | None = None,
    damping: float = 0.01,
    block: int = 128,
) -> tuple[Tensor, Tensor]:
    """Prune W and move its kept entries so that `||X W^T - X W'^T||` stays small.

    Exactly one of `sparsity`, `pattern`, `mask` says what to prune. With a sparsity the mask is
    chosen block by block over all rows, from the values of that moment: the blocks up to
    column b hold exactly `floor(out * b * sparsity)` zeros, so each block has its share to
    within one and the total is exact. With a pattern each group of M columns is chosen when
    the sweep reaches it; `block` then moves nothing (it is rounded up to a multiple of M).

    Inputs that were never active (`gram_jj = 0`) get the weight 0 in every row. They score
    lowest, so they fill the mask first; where the mask has room for more, the weight may hold
    more zeros than the mask has.

    Computed in float32, or in float64 for a float64 weight; the factor of H in the dtype of
    the Gram matrix if that is wider. Memory: about 4 [in, in] and 3 [out, in].

    Args:
        weight: W [out, in].
        gram: sum over tokens of x x^T, [in, in]; its scale does not matter.
        sparsity: fraction of zeros, in [0, 1).
        pattern: N kept of every M consecutive inputs of a row.
        mask: keep-mask [out, in], boolean, fixed beforehand.
        damping: added to the diagonal of H, in units of its mean over the active inputs;
            raised by tens when H cannot be factored.
        block: columns updated at once before the rest of the weight follows.

    Returns:
        W' [out, in] in the dtype of W, zero wherever the mask is False, and the mask [out, in].

    Raises:
        OptionError: when not exactly one rule is given, or one of the options cannot be meant.
        SparsifyError: when shapes do not fit, values are not finite, or no damping tried makes
            H positive definite.
    """
    new, keep, _ = _prune(weight, gram, _Rule(sparsity, pattern, mask), damping, block, None)
    return new, keep


def sparsegpt_rounded(
    weight: Tensor,
    gram: Tensor,
    grid: Grid,
    *,
    sparsity: float | None = None,
    pattern: Pattern | None = None,
    mask: Tensor | None = None,
    damping: float = 0.01,
    block: int = 128,
) -> tuple[Tensor, Tensor, Tensor]:
    """Prune W as `sparsegpt` does and round what is kept in the same sweep.

    Scales belong to groups of columns and are chosen when the sweep reaches their block, from the
    values that the block would have if nothing in it were rounded: those it is about to get, less
    the repair of its own rounding. A sparsity of 0 prunes nothing: plain
    rounding with repair.

    Args:
        weight: W [out, in].
        gram: sum over tokens of x x^T, [in, in].
        grid: the codes and how scales are chosen.
        sparsity: fraction of zeros, in [0, 1).
        pattern: N kept of every M consecutive inputs of a row.
        mask: keep-mask [out, in], boolean, fixed beforehand.
        damping: as of `sparsegpt`.
        block: columns updated at once, rounded up to whole groups.

    Returns:
        W' [out, in] in the dtype of W, `scale code` wherever the mask is True and zero elsewhere; the
        mask [out, in]; the scales, float16 [out, groups].

    Raises:
        OptionError: as `sparsegpt`.
        SparsifyError: as `sparsegpt`, and when a scale does not fit float16.

    Source: Frantar and Alistarh 2023 (SparseGPT, 2301.00774), joint sparsification and quantization;
    its code takes the scales of the weight as it was.
    """
    rule = _Rule(sparsity, pattern, mask)
    new, keep, scales = _prune(weight, gram, rule, damping, block, grid)
    return new, keep, torch.cat(scales, 1)


@dataclass(frozen=True)
class _Rule:
    """What is pruned; exactly one is given."""

    sparsity: float | None
    pattern: Pattern | None
    mask: Tensor | None


def _prune(
    weight: Tensor, gram: Tensor, rule: _Rule, damping: float, block: int, grid: Grid | None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return W', the mask [out, in], and the scales [out, groups of a block] of each block."""
    _check_options(weight, rule, damping, block)
    _check_tensors(weight, gram)
    work = widen(weight).T.clone(memory_format=torch.contiguous_format)
    work[gram.diagonal() == 0] = 0
    factor = inverse_factor(gram, damping).to(work.dtype)
    keep = torch.ones_like(work, dtype=torch.bool)
    if rule.mask is not None:
        keep.copy_(rule.mask.T)
    inputs, block, scales = len(work), _whole(block, rule.pattern, grid), []
    for start in range(0, inputs, block):
        part = slice(start, min(start + block, inputs))
        own = factor[part, part]
        if rule.sparsity is not None:
            keep[part] = _choose_block(work[part], own, part, rule.sparsity)
        steps = None
        if grid is not None:
            scales.append(_scales(work[part], keep[part], own, rule.pattern, grid))
            steps = _Steps.of(scales[-1], grid, work[part])
        errors = _sweep(work[part], keep[part], own, rule.pattern, steps)
        work[part.stop :].addmm_(factor[part, part.stop :].T, errors, alpha=-1)
    return work.T.to(weight.dtype).contiguous(), keep.T.contiguous(), scales


def _whole(block: int, pattern: Pattern | None, grid: Grid | None) -> int:
    """Round a number of columns up to whole groups, of the pattern and of the scales."""
    columns = math.lcm(1 if pattern is None else pattern.m, 1 if grid is None else grid.group)
    return -(-block // columns) * columns


def _choose_block(rows: Tensor, factor: Tensor, part: slice, sparsity: float) -> Tensor:
    """Choose the mask of one block from its values of now.

    rows [block, out] are columns of W, factor [block, block]; returns [block, out].
    """
    outputs = rows.shape[1]
    zeros = zeros_of(outputs * part.stop, sparsity) - zeros_of(outputs * part.start, sparsity)
    # transposed, so that equal scores are kept in the order of W [out, in]
    return keep_top(_scores(rows, factor.diagonal()).T, rows.numel() - zeros).T


def _scores(rows: Tensor, pivots: Tensor) -> Tensor:
    """Return `|W_ij| / U_jj`, the root of the score (same order, no underflow of squares)."""
    return rows.abs() / pivots[:, None]


def _scales(
    rows: Tensor, keep: Tensor, factor: Tensor, pattern: Pattern | None, grid: Grid
) -> Tensor:
    """Choose the scales [out, groups] of one block, from what a sweep without rounding makes of it."""
    trial = rows.clone()
    _sweep(trial, keep.clone(), factor, pattern, None)
    return grid.choose(trial.T, grid.group, grid.bits)


@dataclass(frozen=True)
class _Steps:
    """The grid of one block: the distance of its points for each weight, [block, out], and their number."""

    sizes: Tensor
    q: int

    @classmethod
    def of(cls, scales: Tensor, grid: Grid, rows: Tensor) -> "_Steps":
        sizes = scales.T.to(rows.dtype).repeat_interleave(grid.group, 0)[: len(rows)]
        return cls(sizes, largest_code(grid.bits))


def _sweep(
    rows: Tensor, keep: Tensor, factor: Tensor, pattern: Pattern | None, steps: _Steps | None
) -> Tensor:
    """Prune one block in place, each column repaired by those after it in the block.

    rows [block, out] are columns of W (one input is one contiguous row here), keep
    [block, out] is filled group by group when there is a pattern, factor [block, block].
    Returns the errors E [block, out] by which the columns after the block still must move.
    """
    errors = torch.empty_like(rows)
    pivots = factor.diagonal()
    for index in range(len(rows)):
        if pattern is not None and index % pattern.m == 0:
            group = slice(index, index + pattern.m)
            keep[group] = keep_nm(_scores(rows[group], pivots[group]).T, pattern).T
        kept = rows[index]
        if steps is not None:
            kept = nearest(kept, steps.sizes[index], steps.q)
        kept = kept.masked_fill(~keep[index], 0)
        errors[index] = (rows[index] - kept) / pivots[index]
        rows[index] = kept
        rows[index + 1 :].addr_(factor[index, index + 1 :], errors[index], alpha=-1)
    return errors


def _check_options(weight: Tensor, rule: _Rule, damping: float, block: int) -> None:
    sparsity, pattern, mask = rule.sparsity, rule.pattern, rule.mask
    given = [
        name
        for name, value in (("sparsity", sparsity), ("pattern", pattern), ("mask", mask))
        if value is not None
    ]
    if len(given) != 1:
        raise OptionError(
            "sparsegpt needs exactly one of sparsity, pattern and mask, "
            f"but got {' and '.join(given) or 'none'}"
        )
    if not 0 <= damping < float("inf"):
        raise OptionError(f"damping {damping} is not a finite number from 0 up, as in 0.01")
    if block < 1:
        raise OptionError(f"block {block} is no number of columns, as in 128")
    check_matrix(weight, "the weight")
    if sparsity is not None:
        zeros_of(weight.numel(), sparsity)
    if pattern is not None:
        pattern.check_axis(weight.shape[1], "the weight")
    if mask is not None and (mask.shape != weight.shape or mask.dtype != torch.bool):
        raise OptionError(
            f"the mask of the weight {shape_of(weight)} must be boolean and of its shape, "
            f"but it is {mask.dtype} {shape_of(mask)}"
        )


def _check_tensors(weight: Tensor, gram: Tensor) -> None:
    inputs = weight.shape[1]
    if gram.shape != (inputs, inputs):
        raise SparsifyError(
            f"the weight {shape_of(weight)} needs input statistics [{inputs}, {inputs}], "
            f"but {shape_of(gram)} came"
        )
    check_finite(weight, "the weight")
    check_finite(gram, "the tensor of input statistics")
