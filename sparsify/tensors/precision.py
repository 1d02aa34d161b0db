"""precision: the dtype to measure in, what is no number, and how far tensors are apart."""

import math
from collections.abc import Sequence

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
    """How far a tensor is from the one that was wanted, `max |a - b| / max |a|` over finite entries.

    The one measure of the laws, the exports and whatever else compares outputs. 0 when every entry is
    equal: by value, or NaN on both sides, or the same infinity on both; an empty tensor equals an empty
    one. Infinite where no number can say it: other shapes, other kinds of number (real, complex, integer,
    boolean; other precisions of one kind are compared by value), NaN or infinity on one side only,
    integers or booleans that differ at all, since they are never rounded, and any difference from a
    tensor that is zero everywhere, since it has no size to measure by.

    Args:
        wanted: `a`, any shape and dtype.
        found: `b`, like it; it may live on another device.
    """
    found = found.to(wanted.device)
    if wanted.shape != found.shape or _kind(wanted) != _kind(found):
        return math.inf
    if torch.equal(wanted, found):
        return 0.0
    if _kind(wanted) in ("integer", "boolean"):
        return math.inf
    wide = torch.promote_types(wanted.dtype, torch.float64)
    a, b = wanted.detach().to(wide), found.detach().to(wide)
    finite = a.isfinite() & b.isfinite()
    if not bool((finite | (a == b) | (a.isnan() & b.isnan())).all()):
        return math.inf
    difference = (a - b)[finite].abs()
    worst = float(difference.max()) if difference.numel() else 0.0
    scale = float(a[finite].abs().max()) if worst else 1.0
    return worst / scale if scale else math.inf


def largest_difference(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest `relative_difference` of any pair; infinite when the counts differ, 0 for none."""
    if len(wanted) != len(found):
        return math.inf
    pairs = zip(wanted, found, strict=True)
    return max((relative_difference(a, b) for a, b in pairs), default=0.0)


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    if tensor.is_floating_point():
        return "real"
    return "boolean" if tensor.dtype == torch.bool else "integer"
