"""scores: how much each weight matters; W [out, in] -> scores [out, in], larger is kept.

Scores are float32 (float64 for float64 weights) whatever the weights are, and never negative.
"""

import torch
from torch import Tensor

from sparsify.errors import SparsifyError
from sparsify.tensors.precision import check_matrix, shape_of, widen


def magnitude(weight: Tensor) -> Tensor:
    """Score by size: `S = |W|`.

    Args:
        weight: W [out, in] (any shape is taken).

    Returns:
        S, of the shape of W.

    Source: Han et al. 2015, section 3; the baseline of SparseGPT and Wanda.
    """
    return widen(weight).abs()


def wanda(weight: Tensor, square_sum: Tensor, tokens: int = 1) -> Tensor:
    """Score by size times input: `S_ij = |W_ij| * sqrt(square_sum_j / tokens)`.

    The number of tokens moves no choice inside one weight; give it when scores of weights that
    saw different numbers of tokens (experts) are compared with each other.

    Args:
        weight: W [out, in].
        square_sum: sum over tokens of x_j^2, [in].
        tokens: how many tokens were summed; 1 gives the norm `||X_j||_2` of the paper.

    Returns:
        S [out, in].

    Raises:
        SparsifyError: when W is no matrix, the statistic is not [in], or no token was seen.

    Source: Sun et al. 2023 (Wanda, 2306.11695), section 3, equation 1.
    """
    check_matrix(weight, "the weight")
    if square_sum.shape != weight.shape[1:]:
        raise SparsifyError(
            f"the weight {shape_of(weight)} needs one square sum for each of its "
            f"{weight.shape[1]} inputs, but {shape_of(square_sum)} came"
        )
    if tokens < 1:
        raise SparsifyError(f"square sums over {tokens} tokens say nothing; calibrate first")
    return widen(weight).abs() * (widen(square_sum) / tokens).sqrt()


def ria(weight: Tensor, square_sum: Tensor, power: float = 0.5) -> Tensor:
    """Score by size relative to row and column, times input.

        S_ij = (|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) ||X_j||^power

    Rows and columns that are small as a whole keep their share.

    Args:
        weight: W [out, in].
        square_sum: sum over tokens of x_j^2, [in].
        power: how much the input says.

    Returns:
        S [out, in].

    Raises:
        SparsifyError: when W is no matrix or the statistic is not [in].

    Source: Zhang et al. 2024 (RIA, Plug-and-Play, ICLR), section 3.1, equations 3 and 4.
    """
    size = wanda(weight, square_sum.new_ones(square_sum.shape))
    tiny = torch.finfo(size.dtype).tiny
    relative = size / size.sum(0).clamp_min(tiny) + size / size.sum(1, keepdim=True).clamp_min(tiny)
    return relative * widen(square_sum).sqrt() ** power


def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """Score by the first-order change of the loss when the weight goes: `S = |W * G|`.

    Args:
        weight: W [out, in] (any shape is taken).
        gradient: G = dloss/dW, of the shape of W.

    Returns:
        S, of the shape of W.

    Raises:
        SparsifyError: when the shapes differ.

    Source: LLM-Pruner (2305.11627), section 3.2, importance of single weights, first order.
    """
    _same_shape(weight, gradient, "gradient")
    return (widen(weight) * widen(gradient)).abs()


def second_order(weight: Tensor, curvature: Tensor) -> Tensor:
    """Score by the second-order change of the loss when the weight goes: `S = |W^2 * H|`.

    Args:
        weight: W [out, in] (any shape is taken).
        curvature: H, the diagonal of the Fisher information: mean over samples of (dloss/dW)^2, of
            the shape of W.

    Returns:
        S, of the shape of W.

    Raises:
        SparsifyError: when the shapes differ.

    Source: LLM-Pruner (2305.11627), section 3.2, equation 5 without its first term.
    """
    _same_shape(weight, curvature, "curvature")
    return (widen(weight).square() * widen(curvature)).abs()


def mixed_order(weight: Tensor, gradient: Tensor, curvature: Tensor) -> Tensor:
    """Score by both orders of the change of the loss: `S = |W * G - 1/2 W^2 * H|`.

    Args:
        weight: W [out, in] (any shape is taken).
        gradient: G = dloss/dW, mean over samples, of the shape of W.
        curvature: H, mean over samples of (dloss/dW)^2, of the shape of W.

    Returns:
        S, of the shape of W.

    Raises:
        SparsifyError: when the shapes differ.

    Source: LLM-Pruner (2305.11627), section 3.2, equation 5, mode `param_mix` of its code.
    """
    _same_shape(weight, gradient, "gradient")
    _same_shape(weight, curvature, "curvature")
    wide = widen(weight)
    return (wide * widen(gradient) - wide.square() * widen(curvature) / 2).abs()


def _same_shape(weight: Tensor, other: Tensor, what: str) -> None:
    if other.shape != weight.shape:
        raise SparsifyError(
            f"the weight {shape_of(weight)} and its {what} {shape_of(other)} differ in shape"
        )
