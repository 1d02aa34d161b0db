"""moments: statistics of the inputs of a layer, gathered batch by batch.

Every function takes what is known so far and one more batch x [..., in] (all leading axes are
tokens) and returns the new total; nothing is changed in place. Totals are plain sums, or merge
as sums do, so that no split into batches changes them beyond rounding. The accumulator sets
the precision: make it float32 or float64, the batch may be bfloat16. Leave padding out before
the call: `x[kept_tokens]`.
"""

from torch import Tensor
from torch.nn.functional import cosine_similarity

from sparsify.errors import SparsifyError
from sparsify.tensors.precision import shape_of

# Columns at a time in `add_upper_gram`: 0.59 of the time of the whole product; more gain nothing.
_GRAM_BLOCKS = 8


def accumulate_gram(gram: Tensor, x: Tensor) -> Tensor:
    """Add one batch to the second moment: `G + sum_t x_t x_t^T`.

    Args:
        gram: G [in, in] so far, zeros at first.
        x: inputs [..., in].

    Returns:
        The new G [in, in], in the dtype of the old.

    Raises:
        SparsifyError: when the batch has another number of inputs.

    Source: SparseGPT (2301.00774), algorithm 1: H = X X^T, up to a factor, which cancels.
    """
    rows = _tokens(x, gram)
    return gram.addmm(rows.T, rows)


def add_upper_gram(gram: Tensor, rows: Tensor) -> None:
    """Add one batch to the upper triangle of a second moment, in place: `G += X^T X` where j >= i.

    By blocks of columns, so that a little of the lower triangle is written too; half of the
    multiply-adds of the whole product. `mirrored` gives the whole matrix.

    Args:
        gram: G [in, in], zeros at first.
        rows: X [tokens, in], in the dtype of G.
    """
    size = gram.shape[0]
    step = -(-size // _GRAM_BLOCKS)
    for start in range(0, size, step):
        part = slice(start, start + step)
        gram[part, start:].addmm_(rows[:, part].T, rows[:, start:])


def mirrored(gram: Tensor) -> Tensor:
    """A symmetric matrix [n, n] from its upper triangle."""
    return gram.triu() + gram.triu(1).T


def accumulate_spread(
    count: int, mean: Tensor, scatter: Tensor, x: Tensor
) -> tuple[int, Tensor, Tensor]:
    """Add one batch to mean and scatter, where `scatter_j = sum_t (x_tj - mean_j)^2`.

    With n tokens so far and k new ones of mean m' and scatter s', and d = m' - mean:
    `mean + d k/(n+k)` and `scatter + s' + d^2 n k/(n+k)`. Unlike sums of squares minus the
    square of the sum this loses no digits when the mean is large against the spread.
    Variance is `scatter / count`, the sum of squares `scatter + count mean^2`.

    Args:
        count: tokens so far, 0 at first.
        mean: [in] so far, zeros at first.
        scatter: [in] so far, zeros at first.
        x: inputs [..., in].

    Returns:
        The new count, mean [in] and scatter [in].

    Raises:
        SparsifyError: when the batch has another number of inputs.

    Source: Chan, Golub and LeVeque 1983, the pairwise update; wanted by FLAP
    (2312.11983) and DSnoT (2310.08915).
    """
    rows = _tokens(x, mean)
    new = len(rows)
    if new == 0:
        return count, mean, scatter
    total = count + new
    own = rows.mean(0)
    shift = own - mean
    scatter = scatter + (rows - own).square().sum(0) + shift.square() * (count * new / total)
    return total, mean + shift * (new / total), scatter


def accumulate_level(total: Tensor, x: Tensor, kept: Tensor | None = None) -> Tensor:
    """Add a batch to the squared levels: `l_j + sum_s (mean_t |x_stj|)^2`, s sequences, t their tokens.

    The level of an input in one sequence is its mean size; the root of the total is the L2 norm of
    the levels over all sequences.

    Args:
        total: l [in] so far, zeros at first.
        x: inputs [sequences, tokens, in].
        kept: tokens that count, boolean [sequences, tokens]; None for all.

    Returns:
        The new l [in]; a sequence without a token adds nothing.

    Raises:
        SparsifyError: when the batch has another number of inputs.

    Source: Minitron (2407.14679), section 2.2: mean over the sequence, L2 over the batch.
    """
    rows = _tokens(x, total).abs().reshape(x.shape[0], -1, x.shape[-1])
    if kept is None:
        return total + rows.mean(1).square().sum(0)
    counts = kept.sum(1, keepdim=True).clamp_min(1)
    return total + ((rows * kept[..., None]).sum(1) / counts).square().sum(0)


def accumulate_cosine(total: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Add a batch to the likeness of two activations: `c + sum_t <x_t, y_t> / (||x_t|| ||y_t||)`.

    The influence of a block that makes y out of x is `1 - c / tokens`. A token that is zero on
    either side counts as cosine 0.

    Args:
        total: c [] so far, zero at first.
        x: [..., features], before the block.
        y: of the shape of x, behind it.

    Returns:
        The new c [].

    Raises:
        SparsifyError: when the shapes differ.

    Source: ShortGPT (2403.03853), section 3.2, equation 1: block influence.
    """
    if x.shape != y.shape:
        raise SparsifyError(
            f"a block takes {shape_of(x)} in and gives {shape_of(y)}: it is not residual"
        )
    one, two = x.detach().to(total.dtype), y.detach().to(total.dtype)
    return total + cosine_similarity(one, two, dim=-1).sum()


def _tokens(x: Tensor, total: Tensor) -> Tensor:
    """Return the batch as [tokens, in] in the dtype of the accumulator [..., in]."""
    if x.dim() == 0 or x.shape[-1] != total.shape[-1]:
        raise SparsifyError(
            f"statistics of {total.shape[-1]} inputs cannot take a batch of shape {shape_of(x)}"
        )
    return x.detach().reshape(-1, x.shape[-1]).to(total.dtype)
