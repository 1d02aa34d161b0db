"""lowrank: the two factors of a low-rank branch, A [rank, in] and B [out, rank], delta c B A."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors.factor import inverse_factor
from sparsify.tensors.precision import check_finite, check_matrix, shape_of, widen


def initial(
    outputs: int,
    inputs: int,
    rank: int,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    experts: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Draw A uniform in `[-1/sqrt(in), 1/sqrt(in))` and set B to zero, so that `B A = 0`.

    The bound is that of Kaiming's uniform rule with a = sqrt(5). Drawn in float32 on the CPU
    from a generator of its own: the global one is neither read nor moved.

    Args:
        outputs: rows of the weight adapted.
        inputs: its columns.
        rank: components, at least 1.
        seed: of the draw.
        dtype: of the result.
        experts: their number, where each has a branch of its own.

    Returns:
        A [rank, in] and B [out, rank], of experts [experts, rank, in] and [experts, out, rank].

    Raises:
        OptionError: when the rank is below 1.

    Source: Hu et al. 2021 (LoRA, 2106.09685), section 4.1; A as in its released code.
    """
    if rank < 1:
        raise OptionError(f"rank {rank} makes no low-rank branch: it must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(*experts, rank, inputs, generator=generator, dtype=torch.float32)
    bound = 1 / math.sqrt(inputs)
    return ((2 * draw - 1) * bound).to(dtype), torch.zeros(*experts, outputs, rank, dtype=dtype)


def seed_of(seed: int, place: int) -> int:
    """Return a seed of its own for the branch of each weight, so that no draw depends on another.

    Args:
        seed: of all branches.
        place: of the weight in the graph.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + place)
    return int(torch.randint(2**62, (), generator=generator))


def delta(a: Tensor, b: Tensor, scale: float, dtype: torch.dtype | None = None) -> Tensor:
    """Return `c B A`, multiplied out in float64 and rounded once.

    Args:
        a: A [rank, in], of experts [experts, rank, in].
        b: B [out, rank], of experts [experts, out, rank].
        scale: c.
        dtype: to round to, that of the weight adapted; None takes the dtype of B.

    Returns:
        [out, in], of experts [experts, out, in].

    Raises:
        SparsifyError: when A and B do not share the rank.
    """
    if a.dim() < 2 or b.shape[:-2] != a.shape[:-2] or b.shape[-1] != a.shape[-2]:
        raise SparsifyError(
            f"B [out, rank] and A [rank, in] must share the rank, but their shapes are "
            f"{shape_of(b)} and {shape_of(a)}"
        )
    product = b.detach().double() @ a.detach().double()
    return (product * scale).to(b.dtype if dtype is None else dtype)


def best_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors of the nearest matrix of a rank: `min ||E - B A||_F`.

    From `E = U S V^T`: `B = U_r sqrt(S_r)` and `A = sqrt(S_r) V_r^T`, so both factors have the
    same norm. The error is the norm of the singular values left out. Signs are fixed (in each
    row of A the entry largest in size is positive) because a decomposition leaves them open.

    Args:
        matrix: E [out, in].
        rank: from 1 to min(out, in).

    Returns:
        A [rank, in] and B [out, rank], in the dtype of E, computed in float32 at least.

    Raises:
        OptionError: when E has no such rank.
        SparsifyError: when E is no matrix or not finite.

    Source: Eckart and Young 1936.
    """
    check_matrix(matrix, "the matrix to approximate")
    if not 1 <= rank <= min(matrix.shape):
        raise OptionError(
            f"rank {rank} is not from 1 to {min(matrix.shape)}, "
            f"the most a matrix {shape_of(matrix)} can have"
        )
    check_finite(matrix, "the matrix to approximate")
    left, values, right = torch.linalg.svd(widen(matrix), full_matrices=False)
    root = values[:rank].sqrt()
    right = right[:rank]
    peak = right.gather(1, right.abs().argmax(1, keepdim=True))
    sign = torch.where(peak < 0, -1.0, 1.0).to(right.dtype)
    a = right * sign * root[:, None]
    b = left[:, :rank] * sign.T * root
    return a.to(matrix.dtype), b.to(matrix.dtype)


def matrix_rank(matrix: Tensor, dtype: torch.dtype) -> int:
    """Return how many singular values are more than what rounding to a dtype leaves of zero ones.

    Those below `2 eps` of the largest count as zero, eps the machine epsilon of the dtype: entries rounded by
    half a unit of their last digit move no singular value further.

    Args:
        matrix: [out, in], whose entries were rounded to the dtype.
        dtype: that of storage.

    Source: Stewart and Sun 1990, on perturbed singular values (Weyl's inequality).
    """
    values = torch.linalg.svdvals(matrix.detach().double())
    return int((values > 2 * torch.finfo(dtype).eps * values[0]).sum())


def shared_spaces(matrices: Sequence[Tensor], rank: int) -> tuple[Tensor, Tensor]:
    """Return orthonormal U and V with `W_j = U (U^T W_j V) V^T`, where all rows and columns allow it.

    Args:
        matrices: each W_j [out, in], of one shape.
        rank: columns of U and V.

    Returns:
        U [out, rank] and V [in, rank], in float64.
    """
    wide = [matrix.detach().double() for matrix in matrices]
    left, _, _ = torch.linalg.svd(torch.cat(wide, 1), full_matrices=False)
    _, _, right = torch.linalg.svd(torch.cat(wide, 0), full_matrices=False)
    return left[:, :rank], right[:rank].T


def saliency(square_sum: Tensor, tokens: int) -> Tensor:
    """Return how large each input is: `x_j = sqrt(square_sum_j / tokens) + x_0`, never 0.

    x_0 is the smallest root above 0, or 1 where no input was ever active.

    Args:
        square_sum: sum over tokens of x_j^2, [in].
        tokens: how many tokens were summed.

    Source: Mozaffari et al. 2024 (SLiM, 2410.09615), SLiM-LoRA; the root mean square and the shift are
    those of its code, the paper has the mean size.
    """
    size = (widen(square_sum) / tokens).sqrt()
    active = size[size > 0]
    return size + (active.min() if len(active) else 1.0)


def best_rank_by_saliency(matrix: Tensor, size: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors that lose least where inputs are large: `min ||(E - B A) diag(x)||_F`.

    `x > 0` makes the weighting invertible: with B and A' of `best_rank(E diag(x))`, `A = A' diag(1/x)`.

    Args:
        matrix: E [out, in], what a weight has lost.
        size: x [in], positive, as of `saliency`.
        rank: from 1 to min(out, in).

    Returns:
        A [rank, in] and B [out, rank], in the dtype of E.

    Raises:
        OptionError: when E has no such rank.
        SparsifyError: when E is no matrix or not finite, or x does not fit it.

    Source: Mozaffari et al. 2024 (SLiM, 2410.09615), SLiM-LoRA.
    """
    check_matrix(matrix, "the matrix to approximate")
    if size.shape != matrix.shape[1:] or not bool((size > 0).all()):
        raise SparsifyError(
            f"the matrix {shape_of(matrix)} needs a positive size for each of its "
            f"{matrix.shape[1]} inputs, but {shape_of(size)} came"
        )
    wide = widen(matrix)
    a, b = best_rank(wide * size.to(wide.dtype), rank)
    return (a / size.to(wide.dtype)).to(matrix.dtype), b.to(matrix.dtype)


def best_rank_by_gram(
    matrix: Tensor, gram: Tensor, rank: int, damping: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Return the factors that lose least of the output: `min ||X (E - B A)^T||_F`.

    With `H = gram / mean(diag gram) + damping I` and `H^-1 = U^T U`: B and A' of `best_rank(E U^-1)`,
    `A = A' U`.

    Args:
        matrix: E [out, in], what a weight has lost.
        gram: sum over tokens of x x^T, [in, in]; its scale does not matter.
        rank: from 1 to min(out, in).
        damping: as of `sparsegpt`.

    Returns:
        A [rank, in] and B [out, rank], in the dtype of E.

    Raises:
        OptionError: when E has no such rank.
        SparsifyError: when E is no matrix or not finite, or no damping tried makes H positive definite.

    Source: weighted low-rank approximation by whitening, as in SVD-LLM (Wang et al. 2024, 2403.07378).
    """
    check_matrix(matrix, "the matrix to approximate")
    wide = widen(matrix)
    factor = inverse_factor(gram, damping).to(wide.dtype)
    whitened = torch.linalg.solve_triangular(factor, wide, upper=True, left=False)
    a, b = best_rank(whitened, rank)
    return (a @ factor).to(matrix.dtype), b.to(matrix.dtype)


def block_indicator(inputs: int, k: int) -> Tensor:
    """Return X `[in / k, in]`: `X_ij = 1` where `i k <= j < (i + 1) k`, else 0, so that X x sums blocks.

    Args:
        inputs: columns of the weight, a multiple of k.
        k: inputs of a block.
    """
    return torch.eye(inputs // k).repeat_interleave(k, 1)


def block_means(weight: Tensor, k: int) -> Tensor:
    """Return `S_ij = 1/k sum of W_ip over block j`: the S that makes `||W - S X||_F` smallest.

    X is `block_indicator(in, k)`.

    Args:
        weight: W [out, in], often the pruned part of a weight.
        k: inputs of a block.

    Returns:
        S [out, in / k].

    Raises:
        OptionError: when k does not divide `in`.

    Source: Huang et al. 2024 (AST, 2407.20584), section 3.4.
    """
    check_matrix(weight, "the weight")
    if k < 1 or weight.shape[1] % k:
        raise OptionError(f"k={k} does not divide the {weight.shape[1]} inputs")
    return weight.reshape(len(weight), -1, k).mean(2)
