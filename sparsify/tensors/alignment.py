"""alignment: how much layers repeat each other, from Gram matrices of their features."""

import torch
from torch import Tensor

from sparsify.errors import SparsifyError
from sparsify.tensors.precision import shape_of


def cka(first: Tensor, second: Tensor, *, debiased: bool = False) -> Tensor:
    """Compare two sets of features of the same n samples by linear CKA (normalised HSIC).

        CKA = <H K H, H L H> / (||H K H|| ||H L H||),   H = I - 1 1^T / n

    1 for features equal up to rotation and one scale. With few samples and many features the plain
    form comes close to 1 whatever the features are; the debiased one stays near 0 for independent
    features and may be a little below.

    Args:
        first: K = F F^T [n, n] of features F [n, features], one row a sample.
        second: L [n, n] of the same samples.
        debiased: estimate HSIC without bias; needs 4 samples.

    Returns:
        A scalar in float64.

    Raises:
        SparsifyError: when the matrices are not square and alike, there are too few samples, or
            a set of features does not vary.

    Source: Kornblith et al. 2019 (1905.00414), section 3; Song et al. 2012 for the debiased form;
    LoSA (2502.14816), section 3.2, uses the plain one.
    """
    size = first.shape[0]
    if first.shape != second.shape or first.shape != (size, size):
        raise SparsifyError(
            f"Gram matrices {shape_of(first)} and {shape_of(second)} are not of the same samples"
        )
    if size < (4 if debiased else 2):
        raise SparsifyError(f"{size} samples are too few to compare features; bring more")
    measure = _debiased if debiased else _biased
    one, two = first.double(), second.double()
    norm = measure(one, one) * measure(two, two)
    if not float(norm) > 0:
        raise SparsifyError("features that are the same for every sample cannot be compared")
    return measure(one, two) / norm.sqrt()


def redundancy(grams: list[Tensor], *, debiased: bool = False) -> Tensor:
    """Say how much each layer shares with all others: `theta_i = sum_{j != i} CKA(i, j)`, scaled to sum 1.

    Args:
        grams: K_i [n, n] of each layer's features, the same n samples.
        debiased: as in `cka`.

    Returns:
        theta [layers] in float64; the largest is what the others can best do without.

    Source: LoSA (2502.14816), section 3.2, equations 3 and 4.
    """
    count = len(grams)
    theta = torch.zeros(count, dtype=torch.float64)
    for i in range(count):
        for j in range(i):
            value = cka(grams[i], grams[j], debiased=debiased)
            theta[i] += value
            theta[j] += value
    return theta / theta.sum() if count > 1 else torch.ones(count, dtype=torch.float64)


def _biased(first: Tensor, second: Tensor) -> Tensor:
    return (_centred(first) * _centred(second)).sum()


def _centred(gram: Tensor) -> Tensor:
    return gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()


def _debiased(first: Tensor, second: Tensor) -> Tensor:
    """HSIC_1 of Song et al. 2012, up to the factor 1 / (n (n - 3)), which cancels."""
    n = len(first)
    one, two = first - first.diag().diag(), second - second.diag().diag()
    return (
        (one * two).sum()
        + one.sum() * two.sum() / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one.sum(0) @ two.sum(0))
    )
