"""sparsegpt: prune a weight column by column and let the later columns repair the loss.

For each output row the layer problem is `min ||X w - X w'||^2` under a mask. Columns are fixed
from left to right; what pruning column j loses is made good, exactly in the least-squares
sense, by the columns still free (optimal brain surgeon). One factor of the inverse Gram matrix
serves all rows and all steps:

    H = gram / mean(diag gram) + damping I,   H^-1 = U^T U,   U upper triangular
    score_ij = W_ij^2 / U_jj^2,   e_i = (W_ij - keep(W_ij)) / U_jj,   W_i,j: -= e_i U_j,j:

Source: Frantar and Alistarh 2023 (SparseGPT, 2301.00774), section 3, algorithm 1.
"""

import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors.masks import keep_nm, keep_top, zeros_of
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.precision import check_finite, check_matrix, shape_of, widen

_RAISES = 5
_LEAST_RAISE = 1e-6


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
    _check_options(weight, sparsity, pattern, mask, damping, block)
    _check_tensors(weight, gram)
    work = widen(weight).T.clone(memory_format=torch.contiguous_format)
    work[gram.diagonal() == 0] = 0
    factor = inverse_factor(gram, damping).to(work.dtype)
    keep = torch.ones_like(work, dtype=torch.bool) if mask is None else mask.T.contiguous()
    inputs = len(work)
    block = block if pattern is None else -(-block // pattern.m) * pattern.m
    for start in range(0, inputs, block):
        part = slice(start, min(start + block, inputs))
        own = factor[part, part]
        if sparsity is not None:
            keep[part] = _choose_block(work[part], own, part, sparsity)
        errors = _sweep(work[part], keep[part], own, pattern)
        work[part.stop :].addmm_(factor[part, part.stop :].T, errors, alpha=-1)
    return work.T.to(weight.dtype).contiguous(), keep.T.contiguous()


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """Return U, upper triangular with `U^T U = H^-1`, `H = gram / mean(diag gram) + damping I`.

    Row j of U, divided by U_jj, holds what the columns after j must take up per unit lost in
    column j, and `U_jj^2` is the entry (j, j) of the inverse of H restricted to columns j and
    later. Inputs with `gram_jj = 0` get the diagonal 1 and are left out of the mean.

    Args:
        gram: [in, in], symmetric, positive semi-definite.
        damping: added to the diagonal; tried again with 10 times as much, 5 times at most,
            when H is not positive definite in its precision.

    Raises:
        SparsifyError: when the last damping was not enough either.

    Source: Frantar and Alistarh 2023 (2301.00774), algorithm 1.
    """
    hessian = widen(gram).clone()
    dead = hessian.diagonal() == 0
    # in float64, as a sum of large float32 squares may overflow; of sizes, as a negative mean
    # would turn a broken matrix into a good one
    scale = 1.0 if dead.all() else float(hessian.diagonal()[~dead].double().abs().mean())
    hessian /= scale
    hessian[dead] = 0
    hessian[:, dead] = 0
    hessian.diagonal()[dead] = 1
    added, wanted = 0.0, damping
    for _ in range(_RAISES + 1):
        hessian.diagonal().add_(wanted - added)
        added = wanted
        factor = _factor_of_inverse(hessian)
        if factor is not None:
            return factor
        wanted = max(wanted, _LEAST_RAISE) * 10
    raise SparsifyError(
        f"the input statistics [{len(gram)}, {len(gram)}] are not positive definite, not even "
        f"with damping {added:g}; calibrate again, with more tokens or in float32"
    )


def _factor_of_inverse(hessian: Tensor) -> Tensor | None:
    """Return U with `U^T U = H^-1`, or None where H [in, in] is not positive definite.

    H turned by 180 degrees has a lower factor that turned back is upper: `H = R R^T`, so
    `U = R^-1`. The same unique U as inverting H and factoring that, with less work and
    without the rounding of an explicit inverse.
    """
    lower, info = torch.linalg.cholesky_ex(hessian.flip(0, 1))
    if int(info):
        return None
    identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    factor: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    return factor


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


def _sweep(rows: Tensor, keep: Tensor, factor: Tensor, pattern: Pattern | None) -> Tensor:
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
        lost = rows[index].masked_fill(keep[index], 0)
        errors[index] = lost / pivots[index]
        rows[index].masked_fill_(~keep[index], 0)
        rows[index + 1 :].addr_(factor[index, index + 1 :], errors[index], alpha=-1)
    return errors


def _check_options(
    weight: Tensor,
    sparsity: float | None,
    pattern: Pattern | None,
    mask: Tensor | None,
    damping: float,
    block: int,
) -> None:
    given = [
        name
        for name, rule in (("sparsity", sparsity), ("pattern", pattern), ("mask", mask))
        if rule is not None
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
