"""factor: triangular factors of a Gram matrix and of its inverse, damped until it is definite."""

import torch
from torch import Tensor

from sparsify.errors import SparsifyError
from sparsify.tensors.precision import widen

_RAISES = 5
_LEAST_RAISE = 1e-6


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
