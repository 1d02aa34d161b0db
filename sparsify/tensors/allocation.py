"""allocation: how much of each layer goes, so that a whole goes exactly.

`sizes [layers]` are numbers of weights; the mean that is kept exact is the one weighted by them, which
for layers of equal size is the plain mean. Sparsities are fractions of zeros, float64 `[layers]`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsify.errors import OptionError

_NEARLY_ONE = 1 - 1e-9


def fill(cost: Tensor, target: float, spread: float, sizes: Tensor) -> Tensor:
    """Give much where it costs little: the exact solution of a linear programme by sorting.

        minimise sum_i cost_i s_i   so that  sum_i sizes_i s_i = target sum_i sizes_i,
                                             target - spread <= s_i <= target + spread

    With equal sizes half of the layers come out at either bound (with an odd number one at the
    target); of equal costs the first layers get less.

    Args:
        cost: what a fraction of each layer costs, [layers]; only their order by `cost / sizes` matters.
        target: mean sparsity, in [0, 1).
        spread: the most that a layer may be off the target; cut down near 0 and 1.
        sizes: numbers of weights [layers].

    Returns:
        s [layers].

    Raises:
        OptionError: when target or spread are out of range.

    Source: LoSA (2502.14816), section 3.2, equation 5, there by an iterative solver.
    """
    _check(target, spread)
    spread = min(spread, target, _NEARLY_ONE - target)
    sizes = sizes.double()
    room = sizes * 2 * spread
    left = float((sizes * spread).sum())
    found = torch.full_like(sizes, target - spread)
    ratio = cost.double() / sizes
    # Of equal ratios the later layer first.
    for index in sorted(range(len(sizes)), key=lambda i: (float(ratio[i]), -i)):
        given = min(left, float(room[index]))
        found[index] += given / sizes[index]
        left -= given
    return found


def outlier_share(score: Tensor, times: float) -> float:
    """The share of scores above `times` their mean: OWL's measure of a layer.

    Args:
        score: [out, in], as Wanda's.
        times: 5 in the paper, 6 or 7 elsewhere.

    Source: OWL (2310.05175), section 3, equation 1.
    """
    return float((score > times * score.mean()).double().mean())


def by_outliers(share: Tensor, target: float, spread: float, sizes: Tensor) -> Tensor:
    """Less from layers with outliers: sparsities `target -+ spread` linear in the share, their mean exact.

    Args:
        share: `outlier_share` of each layer, [layers].
        target: mean sparsity.
        spread: lambda, half the distance between the extremes; 0.08 in the paper.
        sizes: numbers of weights [layers].

    Source: OWL (2310.05175), section 3, and its code.
    """
    _check(target, spread)
    low, high = share.double().min(), share.double().max()
    if float(high - low) == 0:
        return torch.full_like(sizes.double(), target)
    return centred(-2 * spread * (share.double() - low) / (high - low), target, sizes)


def arithmetic(step: float, target: float, sizes: Tensor) -> Tensor:
    """More with depth: `s_i = a + step i`, the mean exact; a strong and trivial baseline.

    Args:
        step: how much more the next layer loses; at most `2 min(target, 1 - target) / (layers - 1)`.
        target: mean sparsity.
        sizes: numbers of weights [layers].

    Raises:
        OptionError: when a sparsity would fall outside [0, 1).

    Source: ATP (ICML 2025), section 4.
    """
    _check(target, 0)
    return centred(step * torch.arange(len(sizes), dtype=torch.float64), target, sizes)


def hill_exponent(weight: Tensor) -> float:
    """The power-law exponent of the tail of a weight's spectrum, by Hill's estimator on its upper half.

        alpha = 1 + k / sum_{i <= k} ln(l_i / l_{k+1}),   k = n / 2

    with l the eigenvalues of W^T W from the largest.

    Args:
        weight: W [out, in].

    Returns:
        alpha; a heavy tail, small alpha, is taken for a well trained layer.

    Source: AlphaPruning (2410.10912), section 3.
    """
    values = torch.linalg.svdvals(weight.float()).double().square()
    count = max(1, len(values) // 2)
    floor = values[min(count, len(values) - 1)].clamp_min(1e-300)
    logs = (values[:count].clamp_min(1e-300) / floor).log().sum()
    return float(1 + count / logs.clamp_min(1e-12))


def by_tails(exponent: Tensor, target: float, spread: float, sizes: Tensor) -> Tensor:
    """Less from layers with heavy tails: linear between `1 - spread` and `1 + spread` times a factor.

    Args:
        exponent: `hill_exponent` of each layer, [layers].
        target: mean sparsity; the factor is what makes it exact.
        spread: 0.3 in the paper, where the target is 0.7.
        sizes: numbers of weights [layers].

    Raises:
        OptionError: when a sparsity would fall outside [0, 1).

    Source: AlphaPruning (2410.10912), section 3, equation 3.
    """
    _check(target, 0)
    low, high = exponent.double().min(), exponent.double().max()
    if float(high - low) == 0:
        return torch.full_like(sizes.double(), target)
    raw = 1 - spread + 2 * spread * (exponent.double() - low) / (high - low)
    return _in_range(raw * target * sizes.double().sum() / (raw * sizes.double()).sum())


def centred(offsets: Tensor, target: float, sizes: Tensor) -> Tensor:
    """Sparsities `target + offset`, moved together so that the weighted mean is the target.

    Raises:
        OptionError: when a sparsity falls outside [0, 1).
    """
    weights = sizes.double() / sizes.double().sum()
    return _in_range(offsets - (offsets * weights).sum() + target)


def kept_of_m(sparsity: Tensor, sizes: Tensor, m: int) -> list[int]:
    """Whole numbers of kept entries in each group of M, by largest remainder.

    Layers lose entries until what is kept of all weights is no more than asked for; those whose
    fraction of an entry is largest keep it. With equal sizes the count is exact.

    Args:
        sparsity: [layers].
        sizes: numbers of weights [layers].
        m: entries of a group.

    Returns:
        N of N:M for each layer, from 1 to M.

    Source: mixed N:8 of LoSA (2502.14816), section 4.5; the rounding is ours.
    """
    wanted = m * (1 - sparsity.double())
    kept = wanted.floor().clamp(1, m)
    budget = float((wanted * sizes).sum()) * (1 + 1e-6)  # what float32 fractions lose
    order = sorted(range(len(kept)), key=lambda i: (float(kept[i] - wanted[i]), i))
    for index in order:
        more = float(sizes[index])
        if kept[index] < m and float((kept * sizes).sum()) + more <= budget:
            kept[index] += 1
    return [int(value) for value in kept]


def ranks(error: Tensor, mean: int, largest: int) -> list[int]:
    """Ranks in proportion to reconstruction errors: `r_i = round(mean L_i / mean(L))`, their sum exact.

    Rounded and cut to [1, largest], then put right one by one: too many are taken from the layers
    of least error, missing ones given to those of largest, round after round.

    Args:
        error: L [layers], not negative.
        mean: the mean rank, from 1 to `largest`.
        largest: the most a layer can hold.

    Returns:
        r of each layer; `sum r = mean layers`.

    Raises:
        OptionError: when the mean is not between 1 and the largest.

    Source: LoSA (2502.14816), section 3.3, equations 7 and 9; the repair there is one round.
    """
    if not 1 <= mean <= largest:
        raise OptionError(f"a mean rank of {mean} is not between 1 and {largest}")
    share = error.double() / error.double().mean().clamp_min(1e-300)
    found = (mean * share).round().clamp(1, largest)
    rising = sorted(range(len(found)), key=lambda i: (float(error[i]), i))
    left = int(mean * len(found) - found.sum())
    while left:
        for index in rising if left < 0 else reversed(rising):
            if left < 0 < found[index] - 1:
                found[index] -= 1
                left += 1
            elif left > 0 and found[index] < largest:
                found[index] += 1
                left -= 1
    return [int(value) for value in found]


def worth_most(gain: Sequence[float], size: Sequence[int], room: int) -> list[bool]:
    """Say which things to take so that they are worth much and fit: by gain for their size, the best first.

    What does not fit any more is passed over for smaller things behind it. Of equal ones the first is taken.

    Args:
        gain: of each, what taking it is worth; nothing that is worth nothing is taken.
        size: of each, at least 0.
        room: for the sizes of all that are taken.

    Returns:
        for each whether it is taken.
    """
    order = sorted(range(len(gain)), key=lambda i: (-gain[i] / max(size[i], 1e-300), i))
    taken = [False] * len(gain)
    for index in order:
        if gain[index] > 0 and size[index] <= room:
            taken[index] = True
            room -= size[index]
    return taken


def _check(target: float, spread: float) -> None:
    if not 0 <= target < 1:
        raise OptionError(f"sparsity {target} is not in [0, 1)")
    if spread < 0:
        raise OptionError(f"spread={spread} must not be negative")


def _in_range(found: Tensor) -> Tensor:
    worst = found[(found - 0.5).abs().argmax()]
    if not 0 <= float(worst) < 1:
        raise OptionError(
            f"a layer would get the sparsity {float(worst):.3f}; choose a smaller spread"
        )
    return found
