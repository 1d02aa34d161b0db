"""stacks: matrices of one shape approximated together, `T [n, a, b]`, by what they share (TRAWL).

    Tucker   T_j ~ U G_j V^T                      U [a, R], V [b, R] orthonormal, G [n, R, R]
    CP       T_j ~ A diag(c_j) B^T                A [a, R], B [b, R], C [n, R]

One matrix has one answer in both forms, its truncated singular value decomposition (LASER).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors.lowrank import best_rank
from sparsify.tensors.precision import check_finite, shape_of

Form = Literal["tucker", "cp"]
Array = npt.NDArray[np.float64]
_SWEEPS = 500  # of alternating least squares, which creep where components are alike
_LEAST = 1e-7  # what a sweep must gain of the error for another one
_STARTS = 6  # one from singular vectors, the others drawn
# No component may be more than so many times as large as the tensor: larger ones cancel each other.
_LARGEST = 10.0
_EXACT = 1e-12  # an error that no other start could better
_RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Fit:
    """`slices [n, a, b]`, float64, that stand for a stack T; `error` is `||T - slices||_F / ||T||_F`.

    `ridge` is what CP needed to keep its components bounded, relative to `||T||_F`; 0 for none.
    """

    slices: Tensor
    error: float
    ridge: float = 0.0


def fit(stack: Tensor, rank: int, form: Form = "tucker", seed: int = 0) -> Fit:
    """Approximate a stack in float64 at a rank.

    Tucker is higher-order orthogonal iteration over the two modes of the matrices, from singular vectors; n
    stays. CP is fitted inside the subspaces that Tucker finds: by eigenvectors where n is 2 and they are
    real, and by alternating least squares from singular vectors and from five draws; the best one counts
    whose components are bounded. The best CP of a rank need not exist: components then grow and cancel, and
    a ridge keeps them bounded.

    Args:
        stack: T [n, a, b].
        rank: R, from 1 to max(a, b); of Tucker no mode gets more than its size.
        form: of the approximation.
        seed: of the draws.

    Raises:
        OptionError: for a rank that no such matrix has.
        SparsifyError: when T holds NaN or infinity, or the package tensorly is missing.

    Source: Luo et al. 2025 (TRAWL, 2406.17261) for the stacks; Kolda and Bader 2009 for the algorithms.
    """
    count, rows, columns = stack.shape
    if not 1 <= rank <= max(rows, columns):
        raise OptionError(
            f"rank={rank} is not from 1 to {max(rows, columns)}, "
            f"the most that matrices {shape_of(stack[0])} can share"
        )
    check_finite(stack, "the stack to approximate")
    wide = stack.detach().double().cpu()
    if not bool(wide.any()):
        return Fit(wide.clone(), 0.0)
    if count == 1:
        a, b = best_rank(wide[0], min(rank, rows, columns))
        return _held(wide, (b @ a)[None], 0.0)
    with library().backend_context("numpy"):
        core, left, right = _tucker(wide.numpy(), rank)
        ridge = 0.0
        if form == "cp":
            core, ridge = _cp(core, rank, seed)
    slices = torch.from_numpy(np.ascontiguousarray(left @ core @ right.T))
    return _held(wide, slices, ridge)


def library() -> ModuleType:
    """The package tensorly; SparsifyError where it is missing."""
    try:
        import_module("tensorly.decomposition")
        return import_module("tensorly")
    except ImportError as error:
        raise SparsifyError(
            "stacks of matrices need the package 'tensorly'; run: pip install 'sparsify-fx[tensors]'"
        ) from error


def _held(wide: Tensor, slices: Tensor, ridge: float) -> Fit:
    return Fit(slices, float((wide - slices).norm() / wide.norm()), ridge)


def _tucker(stack: Array, rank: int) -> tuple[Array, Array, Array]:
    """G [n, r, s], U [a, r] and V [b, s]; r and s are the rank, or what the sizes leave of it."""
    count, rows, columns = stack.shape
    r, s = min(rank, rows), min(rank, columns)
    r, s = min(r, count * s), min(s, count * r)
    decomposition = library().decomposition
    (core, (left, right)), _ = decomposition.partial_tucker(
        stack, rank=[r, s], modes=[1, 2], init="svd", tol=1e-5, random_state=0
    )
    return core, left, right


def _cp(core: Array, rank: int, seed: int) -> tuple[Array, float]:
    """The bounded CP of a core G [n, r, s], multiplied out, and the ridge that bounded it."""
    size = float(np.linalg.norm(core))
    unit = core / size
    best: tuple[float, Array] | None = None
    for parts in _candidates(unit, rank, seed):
        if _largest(parts) <= _LARGEST:
            whole = _multiplied(parts)
            error = float(np.linalg.norm(unit - whole))
            if best is None or error < best[0]:
                best = error, whole
            if error < _EXACT:
                break
    if best is not None:
        return best[1] * size, 0.0
    for ridge in _RIDGES:
        held = _least_squares(unit, rank, seed, 0, ridge)
        if held is not None and _largest(held) <= _LARGEST:
            return _multiplied(held) * size, ridge
    raise SparsifyError(f"no bounded CP of rank {rank} was found; use form=tucker")


def _candidates(unit: Array, rank: int, seed: int) -> Iterator[tuple[Array, Array, Array]]:
    exact = _by_eigenvectors(unit, rank)
    if exact is not None:
        yield exact
    for start in range(_STARTS):
        parts = _least_squares(unit, rank, seed, start)
        if parts is not None:
            yield parts


def _by_eigenvectors(core: Array, rank: int) -> tuple[Array, Array, Array] | None:
    """C, A and B of two slices `G_j = A diag(c_j) B^T`: A are the eigenvectors of `G_1 G_2^-1`.

    None where there are more slices, the rank is not their size, or eigenvalues are not real.
    """
    if core.shape != (2, rank, rank):
        return None
    first, second = core
    try:
        values, left = np.linalg.eig(np.linalg.solve(second.T, first.T).T)
        if np.iscomplexobj(values):
            return None
        right = np.linalg.solve(left, second).T
    except np.linalg.LinAlgError:
        return None
    return np.stack([values, np.ones_like(values)]), left, right


def _least_squares(
    unit: Array, rank: int, seed: int, start: int, ridge: float = 0.0
) -> tuple[Array, Array, Array] | None:
    """C, A and B by alternating least squares, start 0 from singular vectors; None where they break down."""
    decomposition: Any = library().decomposition
    draw = np.random.default_rng([seed, start])
    begin = [draw.standard_normal((size, rank)) for size in unit.shape]
    if not start:
        for mode in (1, 2):
            left = np.linalg.svd(np.moveaxis(unit, mode, 0).reshape(unit.shape[mode], -1))[0]
            begin[mode][:, : left.shape[1]] = left[:, :rank]
    try:
        _, parts = decomposition.parafac(
            unit,
            rank,
            n_iter_max=_SWEEPS,
            init=(np.ones(rank), begin),
            tol=_LEAST,
            l2_reg=ridge,
        )
    except np.linalg.LinAlgError:
        return None
    c, a, b = parts
    return (c, a, b) if all(bool(np.isfinite(part).all()) for part in parts) else None


def _multiplied(parts: tuple[Array, Array, Array]) -> Array:
    c, a, b = parts
    whole: Array = np.einsum("jr,ar,br->jab", c, a, b)
    return whole


def _largest(parts: tuple[Array, Array, Array]) -> float:
    """The norm of the largest component."""
    sizes = np.prod([np.linalg.norm(part, axis=0) for part in parts], axis=0)
    return float(sizes.max())
