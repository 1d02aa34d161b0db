"""Statistics of activations, read off the buffers of probes or summed outside a graph."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sparsify import ranks
from sparsify.errors import SparsifyError
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear, apart, together
from sparsify.ir.views.probe import probe_behind
from sparsify.tensors import scores
from sparsify.tensors.moments import accumulate_spread, add_upper_gram, mirrored


@dataclass(frozen=True)
class Statistics:
    """What is known of an activation `x [tokens, features]`.

    `tokens` their number; `mean [features]`; `scatter [features]` sum of (x - mean)^2; `level
    [features]` sum over sequences of the squared mean size in each; `gram [features, features]` sum of
    x x^T, where it was asked for.
    """

    tokens: int
    mean: Tensor
    scatter: Tensor
    level: Tensor | None
    gram: Tensor | None

    @property
    def square(self) -> Tensor:
        """Sum over tokens of x squared, `[features]`."""
        return self.scatter + self.tokens * self.mean.square()

    @property
    def variance(self) -> Tensor:
        """Variance over tokens, `[features]`."""
        return self.scatter / self.tokens


class Sums:
    """Statistics of one activation, added up batch by batch outside a graph; without its levels."""

    def __init__(self, size: int, *, gram: bool, device: torch.device | None = None) -> None:
        zeros = partial(torch.zeros, dtype=torch.float32, device=device)
        self.tokens, self.mean, self.scatter = 0, zeros(size), zeros(size)
        self.gram = zeros(size, size) if gram else None

    def add(self, rows: Tensor) -> None:
        """Add `rows [tokens, features]`, of any precision."""
        rows = rows.to(torch.float32)
        spread = accumulate_spread(self.tokens, self.mean, self.scatter, rows)
        self.tokens, self.mean, self.scatter = spread
        if self.gram is not None:
            add_upper_gram(self.gram, rows)

    def add_up(self) -> None:
        """Put what all ranks have added in the place of what this one has."""
        count = torch.tensor(self.tokens)
        pool(count, self.mean, self.scatter)
        self.tokens = int(count)
        if self.gram is not None:
            ranks.add_up(self.gram)

    def statistics(self) -> Statistics:
        """What was added so far; of no token as `unseen`."""
        gram = None if self.gram is None else mirrored(self.gram)
        found = Statistics(self.tokens, self.mean, self.scatter, None, gram)
        return found if self.tokens else unseen(found)


def pool(count: Tensor, mean: Tensor, scatter: Tensor) -> None:
    """Put the statistics of the tokens of all ranks in the place of those of one, in place.

        n = sum n_r,   m = sum n_r m_r / n,   s = sum s_r + n_r (m_r - m)^2

    `count []`, `mean [features]`, `scatter [features]`; sums are taken in float64.
    """
    if ranks.count() == 1:
        return
    mine, here = int(count), mean.double()
    ranks.add_up(count)
    whole = here * mine / max(1, int(count))
    ranks.add_up(whole)
    spread = scatter.double() + mine * (here - whole).square()
    ranks.add_up(spread)
    mean.copy_(whole)
    scatter.copy_(spread)


def statistics_of(program: Program, view: Linear) -> Statistics:
    """The statistics of the input of a linear of one matrix; errors as `statistics_of_each` raises them."""
    (found,) = statistics_of_each(program, view)
    return found


def statistics_of_each(program: Program, view: Linear) -> list[Statistics]:
    """The statistics of the input of each matrix of a linear: one, or those of the experts one by one.

    They are those of the probe before it. An expert that saw no token has those of inputs of one size,
    so that it is pruned by its weights alone.
    Raises SparsifyError when there is no probe, or when `calibrate` has not filled it.
    """
    probe = probe_behind(view.x)
    if probe is None:
        raise SparsifyError(
            f"the input of @{view.weight} has no probe; widen the targets of insert-probes"
        )
    buffers = [program.tensor(path) for path in probe.statistics]
    if not bool(buffers[0].any()):
        raise SparsifyError(
            f"the probe at the input of @{view.weight} saw no token; calibrate first"
        )
    if not probe.of_experts:
        return [_statistics(buffers)]
    each = [_statistics(expert) for expert in zip(*buffers, strict=True)]
    return [one if one.tokens else unseen(one) for one in each]


def _statistics(buffers: Sequence[Tensor]) -> Statistics:
    count, mean, scatter, level, *gram = buffers
    return Statistics(int(count), mean, scatter, level, gram[0] if gram else None)


def unseen(empty: Statistics) -> Statistics:
    """Statistics of one token whose inputs are all of size one and go with no other."""
    ones = torch.ones_like(empty.mean)
    gram = None if empty.gram is None else torch.diag(ones)
    level = None if empty.level is None else torch.zeros_like(ones)
    return Statistics(1, torch.zeros_like(ones), ones, level, gram)


def never_chosen(program: Program, views: Iterable[Linear]) -> list[str]:
    """A note on the experts that no token of the calibration was sent to; nothing where there are none."""
    counts = []
    for view in {view.weight: view for view in views}.values():
        probe = probe_behind(view.x)
        if probe is not None and probe.of_experts:
            counts.append(program.tensor(probe.statistics[0]))
    missed = sum(int((count == 0).sum()) for count in counts)
    if not missed:
        return []
    return [
        f"{missed} of {sum(map(len, counts))} matrices of experts saw no token and were chosen by their "
        "weights alone; calibrate with more samples"
    ]


def by_wanda(program: Program) -> Callable[[Linear, Tensor], Tensor]:
    """Wanda's score `[out, in]` of a weight `[out, in]` of a linear, by the norms its probe measured.

    Of experts `[experts, out, in]`, each by the tokens that were sent to it.
    """

    def score(linear: Linear, weight: Tensor) -> Tensor:
        found = zip(apart(linear, weight), statistics_of_each(program, linear), strict=True)
        each = [scores.wanda(matrix, seen.square, seen.tokens) for matrix, seen in found]
        return together(linear, each)

    return score
