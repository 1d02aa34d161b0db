"""importance: how much the inputs of a linear matter, and scores of different layers made comparable."""

import torch
from torch import Tensor

from sparsify.errors import SparsifyError
from sparsify.tensors.precision import check_matrix, shape_of, widen


def fluctuation(weight: Tensor, variance: Tensor) -> Tensor:
    """Score inputs by what a constant in their place would lose: `S_j = Var(x_j) * sum_i W_ij^2`.

    With the input replaced by its mean (a bias makes up for it), this is the expected squared error
    of the outputs.

    Args:
        weight: W [out, in].
        variance: of each input over tokens, [in].

    Returns:
        S [in].

    Raises:
        SparsifyError: when W is no matrix or the variance is not [in].

    Source: FLAP (2312.11983), section 3.2, equation 5 (WIFV).
    """
    check_matrix(weight, "the weight")
    if variance.shape != weight.shape[1:]:
        raise SparsifyError(
            f"the weight {shape_of(weight)} needs one variance for each of its {weight.shape[1]} "
            f"inputs, but {shape_of(variance)} came"
        )
    return widen(variance) * widen(weight).square().sum(0)


def mean_bias(removed: Tensor, mean: Tensor) -> Tensor:
    """The bias that stands in for removed weights when inputs are at their mean: `b_i = sum_j R_ij m_j`.

    Args:
        removed: R [out, in], the weights that go, zero where they stay.
        mean: m [in], the mean of each input over tokens.

    Returns:
        b [out].

    Raises:
        SparsifyError: when R is no matrix or the mean is not [in].

    Source: FLAP (2312.11983), section 3.4, equation 7.
    """
    check_matrix(removed, "the removed weight")
    if mean.shape != removed.shape[1:]:
        raise SparsifyError(
            f"the removed weight {shape_of(removed)} needs one mean for each of its "
            f"{removed.shape[1]} inputs, but {shape_of(mean)} came"
        )
    return widen(removed) @ widen(mean)


def standardise(scores: Tensor) -> Tensor:
    """Scores of one layer in units of their spread: `(S - mean) / std`, zeros when all are equal.

    Args:
        scores: [n].

    Returns:
        [n]; std with the divisor n - 1.

    Source: FLAP (2312.11983), section 3.3, equation 6.
    """
    centred = scores - scores.mean()
    spread = centred.square().sum() / max(1, len(scores) - 1)
    return centred / spread.sqrt() if bool(spread > 0) else torch.zeros_like(scores)
