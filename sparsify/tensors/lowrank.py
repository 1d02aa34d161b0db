"""lowrank: the two factors of a low-rank branch, A [rank, in] and B [out, rank], delta c B A."""

import math

import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors.precision import check_finite, check_matrix, shape_of, widen


def initial(
    outputs: int, inputs: int, rank: int, *, seed: int, dtype: torch.dtype = torch.float32
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

    Returns:
        A [rank, in] and B [out, rank].

    Raises:
        OptionError: when the rank is below 1.

    Source: Hu et al. 2021 (LoRA, 2106.09685), section 4.1; A as in its released code.
    """
    if rank < 1:
        raise OptionError(f"rank {rank} makes no low-rank branch: it must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(rank, inputs, generator=generator, dtype=torch.float32)
    bound = 1 / math.sqrt(inputs)
    return ((2 * draw - 1) * bound).to(dtype), torch.zeros(outputs, rank, dtype=dtype)


def delta(a: Tensor, b: Tensor, scale: float, dtype: torch.dtype | None = None) -> Tensor:
    """Return `c B A`, multiplied out in float64 and rounded once.

    Args:
        a: A [rank, in].
        b: B [out, rank].
        scale: c.
        dtype: to round to, that of the weight adapted; None takes the dtype of B.

    Returns:
        [out, in].

    Raises:
        SparsifyError: when A and B do not share the rank.
    """
    if a.dim() != 2 or b.dim() != 2 or b.shape[1] != a.shape[0]:
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
