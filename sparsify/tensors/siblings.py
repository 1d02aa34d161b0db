"""siblings: what fine-tuned copies of a weight have learnt, as low-rank branches and rows of a router.

    D_i = W_i - W_0 = U_i diag(S_i) V_i^T
    A_i = diag(S_i) V_i^T [:k],   B_i = U_i [:, :k],   R_i = V_i^T [:gate]

The norm of `R_i x` says how much of an input lies where sibling i has changed most. Rows of R_i beyond the
rank of D_i are zero: it has changed nothing there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.tensors.precision import check_matrix, shape_of

SAME = 1e-8  # the largest entry of a difference that counts as none


@dataclass(frozen=True)
class Branch:
    """Of one sibling: `a [rank, in]`, `b [out, rank]`, and its rows of the router `router [gate, in]`."""

    a: Tensor
    b: Tensor
    router: Tensor


def branch(base: Tensor, sibling: Tensor, rank: int | None, gate: int) -> Branch:
    """Return the branch of a sibling of a weight: the leading singular directions of the difference.

    Singular values are taken in float32, or float64 where the weights are that, and what comes out has the
    type of the base.

    Args:
        base: W_0 [out, in].
        sibling: W_i [out, in].
        rank: directions that the branch keeps; None for all of them.
        gate: directions that the router looks at; fewer where the difference has a lower rank.

    Returns:
        the branch; rank and gate are cut down to the smaller side of the weight.

    Raises:
        OptionError: when the rank or the gate is below 1.
        SparsifyError: when the shapes differ or a weight is no matrix.

    Source: Tang et al. 2024 (SMILE, 2408.10174), section 4.
    """
    if gate < 1 or (rank is not None and rank < 1):
        raise OptionError(f"rank={rank} and gate={gate} must be at least 1")
    check_matrix(base, "the weight of the base")
    if base.shape != sibling.shape:
        raise SparsifyError(
            f"the weight of the base is {shape_of(base)}, that of the sibling {shape_of(sibling)}"
        )
    wide = torch.float64 if base.dtype == torch.float64 else torch.float32
    difference = sibling.detach().to(wide) - base.detach().to(wide)
    u, values, v = torch.linalg.svd(difference, full_matrices=False)
    kept = slice(None, rank)
    a = values[kept, None] * v[kept]
    # Below the numerical rank singular vectors are any basis of what the sibling did not change.
    least = values[:1] * max(difference.shape) * torch.finfo(wide).eps
    router = v[:gate] * (values[:gate, None] > least)
    return Branch(*(part.to(base.dtype).contiguous() for part in (a, u[:, kept], router)))


def is_same(base: Tensor, sibling: Tensor) -> bool:
    """Whether a sibling left a tensor as it was: no entry differs by more than 1e-8."""
    return bool((sibling.detach() - base.detach()).abs().max() <= SAME)


def added_parameters(outputs: int, inputs: int, siblings: int, rank: int, gate: int) -> int:
    """Return what a linear without bias grows by: `T (gate in + rank (in + out))`.

    Args:
        outputs: rows of the weight.
        inputs: its columns.
        siblings: T.
        rank: of each branch.
        gate: rows of the router for each.

    Source: Tang et al. 2024 (SMILE, 2408.10174), section 4.
    """
    return siblings * (gate * inputs + rank * (inputs + outputs))
