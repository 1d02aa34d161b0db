"""precision: the dtype to measure in, what is no number, and how far tensors are apart."""

import math

import torch
from torch import Tensor

from sparsify.errors import SparsifyError


def widen(tensor: Tensor) -> Tensor:
    """Return the values of a tensor in float32, or in float64 when they already are.

    Half precision has too few steps to rank weights in: whole runs of scores would tie.
    The result is cut off from any gradient, because what is measured is never trained through.

    Args:
        tensor: any shape, any real dtype.
    """
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def check_finite(tensor: Tensor, name: str) -> None:
    """Refuse a tensor that holds NaN or infinity.

    Args:
        tensor: any shape.
        name: what the values are, for the sentence.

    Raises:
        SparsifyError: with the number of bad values.
    """
    bad = tensor.numel() - int(tensor.isfinite().sum())
    if bad:
        raise SparsifyError(
            f"{name} has {bad} of {tensor.numel()} values that are NaN or infinite; "
            "mend the model or its calibration data first"
        )


def check_matrix(tensor: Tensor, name: str) -> None:
    """Refuse what is not a matrix.

    Args:
        tensor: wanted as [out, in].
        name: what the tensor is, for the sentence.

    Raises:
        SparsifyError: with the shape found.
    """
    if tensor.dim() != 2:
        raise SparsifyError(
            f"{name} must be a matrix [out, in], but its shape is {shape_of(tensor)}"
        )


def shape_of(tensor: Tensor) -> list[int]:
    """Return the shape as a plain list, the way sentences print it."""
    return list(tensor.shape)


def relative_difference(wanted: Tensor, found: Tensor) -> float:
    """`max |a - b| / max |a|`; 0 for bitwise equality, infinite for other shapes or NaN."""
    found = found.to(wanted.device)
    if wanted.shape != found.shape:
        return math.inf
    if wanted.dtype == found.dtype and torch.equal(wanted, found):
        return 0.0
    a, b = wanted.double(), found.double()
    if not bool((a.isfinite() == b.isfinite()).all()):
        return math.inf
    finite = a.isfinite()
    if not finite.any():
        return 0.0
    return float((a - b)[finite].abs().max() / a[finite].abs().max().clamp_min(1e-30))
