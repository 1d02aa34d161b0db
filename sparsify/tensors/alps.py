"""alps: prune a weight by operator splitting: least squares and the zero pattern meet step by step.

The layer problem `min ||X W0 - X W||^2` with at most k entries, or N:M, is split (ADMM): W solves the
least squares near a sparse copy D, D is the projection of W, V their running disagreement:

    W <- (H + rho I)^-1 (H W0 - V + rho D),   D <- P(W + V / rho),   V <- V + rho (W - D)

with H = X^T X, damped and scaled to a unit diagonal. rho grows while the support of D still moves; when
it stands still, conjugate gradients on the support finish.

Source: Meng et al. 2024 (ALPS, 2406.07831), sections 3.1 to 3.3, and its code.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sparsify.errors import OptionError
from sparsify.tensors.masks import keep_global, keep_nm
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.precision import check_finite, check_matrix, widen

_FIRST_RHO = 0.1
_EVERY = 3
# Above which share of the support that changed rho grows by which factor.
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))


def alps(
    weight: Tensor,
    gram: Tensor,
    *,
    sparsity: float | None = None,
    pattern: Pattern | None = None,
    damping: float = 0.01,
    steps: int = 300,
    finish: int = 10,
) -> tuple[Tensor, Tensor]:
    """Prune W and move its kept entries so that `||X W^T - X W'^T||` stays small.

    Args:
        weight: W [out, in].
        gram: sum over tokens of x x^T, [in, in]; its scale does not matter.
        sparsity: fraction of zeros over the whole weight.
        pattern: N kept of every M consecutive inputs of a row; one of both is given.
        damping: added to the diagonal of H, in units of its mean.
        steps: the most steps of the splitting.
        finish: steps of conjugate gradients on the support.

    Returns:
        W' [out, in] in the dtype of W, zero wherever the mask is False, and the mask [out, in].

    Raises:
        OptionError: when not exactly one of sparsity and pattern is given.
        SparsifyError: when values are not finite.
    """
    if (sparsity is None) == (pattern is None):
        raise OptionError("alps needs exactly one of sparsity and pattern")
    check_matrix(weight, "the weight")
    check_finite(weight, "the weight")
    check_finite(gram, "the tensor of input statistics")
    keep: Callable[[Tensor], Tensor]
    if pattern is not None:
        keep = lambda score: keep_nm(score, pattern)  # noqa: E731
    else:
        assert sparsity is not None
        keep = lambda score: keep_global(score, sparsity)  # noqa: E731
    hessian, scale = _scaled(gram, damping)
    dense = widen(weight) * scale
    mask = _split(dense, hessian, keep, steps)
    found = _solve_on_support(dense, hessian, mask, finish)
    return (found / scale).to(weight.dtype), mask


def _scaled(gram: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """H with a unit diagonal, and the square roots [in] of what its diagonal was."""
    hessian = widen(gram).clone()
    mean = hessian.diagonal().mean().clamp_min(torch.finfo(hessian.dtype).tiny)
    hessian.diagonal().add_(damping * mean)
    # An input that was never active keeps a diagonal even without damping.
    hessian.diagonal()[hessian.diagonal() == 0] = mean
    scale = hessian.diagonal().sqrt()
    return hessian / scale / scale[:, None], scale


def _split(dense: Tensor, hessian: Tensor, keep: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """The support at which the splitting comes to rest, as a keep-mask [out, in]."""
    values, vectors = torch.linalg.eigh(hessian)
    pull = dense @ hessian
    sparse, disagreement = dense.clone(), torch.zeros_like(dense)
    rho, support = _FIRST_RHO, keep(dense.abs())
    for step in range(1, steps + 1):
        right = pull - disagreement + rho * sparse
        solved = ((right @ vectors) / (values + rho)) @ vectors.T
        wanted = solved + disagreement / rho
        mask = keep(wanted.abs())
        sparse = wanted * mask
        disagreement += rho * (solved - sparse)
        if step % _EVERY == 0:
            moved = float((mask & ~support).sum()) / max(1, int(mask.sum()))
            support = mask
            factor = next((f for least, f in _GROWTH if moved > least), None)
            if factor is None:
                break
            rho *= factor
    return support


def _solve_on_support(dense: Tensor, hessian: Tensor, mask: Tensor, steps: int) -> Tensor:
    """Conjugate gradients for the kept entries of each row, from the dense ones; `[out, in]`."""
    found = dense * mask
    residual = ((dense - found) @ hessian) * mask
    direction = residual
    size = residual.square().sum(1, keepdim=True)
    tiny = torch.finfo(dense.dtype).tiny
    for _ in range(steps):
        image = (direction @ hessian) * mask
        step = size / (direction * image).sum(1, keepdim=True).clamp_min(tiny)
        found = found + step * direction
        residual = residual - step * image
        new = residual.square().sum(1, keepdim=True)
        direction = residual + new / size.clamp_min(tiny) * direction
        size = new
    return found
