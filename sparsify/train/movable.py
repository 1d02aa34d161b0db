"""What may move: masks whose entries are ranked by the weights as they are while these are trained."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from sparsify.ir.features.convolution_mask import masked_convolutions
from sparsify.ir.features.weight_mask import masked_linears
from sparsify.ir.program import Program
from sparsify.ir.run.straight_masks import straight_masks
from sparsify.ir.views.linear import Linear, apart, branched_weight, out_in, together
from sparsify.tensors.masks import keep_across, keep_nm
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.scores import magnitude
from sparsify.train.sharded import whole

# Scores [out, in] of a linear's weight, larger for what is to stay.
Score = Callable[[Linear, Tensor], Tensor]


class Movable(Protocol):
    """Masks of a program, and how their entries are ranked.

    `masks` maps what is masked to the path of its mask; what is said of entries has the shape of their mask,
    and is made one mask at a time. With `one_threshold` the entries that stay have the largest scores of all.
    """

    @property
    def masks(self) -> Mapping[str, str]:
        """The path of each mask, by the path of what it masks."""

    @property
    def one_threshold(self) -> bool:
        """Whether all entries are ranked together."""

    def size(self, path: str) -> Tensor:
        """|W| of each entry, of a group the sum over its weights."""

    def score(self, path: str) -> Tensor:
        """The score of each entry, larger for what is to stay."""

    def share(self, masks: Mapping[str, Tensor]) -> float:
        """What masks leave out, as a fraction of all that a sparsity is a fraction of."""

    def keep(self, score: Callable[[str], Tensor], sparsity: float) -> Iterable[tuple[str, Tensor]]:
        """Each keep-mask by a score, to a sparsity where no pattern says how much stays."""

    def straight(self) -> AbstractContextManager[None]:
        """The graph with gradients that reach all weights, inside the block."""


class MovingWeights:
    """Masks of single weights: N of M inputs of a linear, or what is largest of all of them together."""

    def __init__(
        self,
        program: Program,
        kinds: Sequence[str] = ("weights",),
        pattern: Pattern | None = None,
        by: Score | None = None,
    ) -> None:
        self.program, self.pattern, self.by = program, pattern, by
        found = masked_linears(program) if "weights" in kinds else []
        found += masked_convolutions(program) if "convolutions" in kinds else []
        self.views = {view.weight: view for view in found}

    @property
    def masks(self) -> Mapping[str, str]:
        """The mask of each weight."""
        return {path: view.mask for path, view in self.views.items() if view.mask is not None}

    @property
    def one_threshold(self) -> bool:
        """Whether there is no pattern."""
        return self.pattern is None

    def size(self, path: str) -> Tensor:
        """|W|."""
        return whole(self.program.tensor(path)).detach().abs()

    def score(self, path: str) -> Tensor:
        """|W + c B A|, or what the score gives for it."""
        view = self.views[path]
        weight = whole(branched_weight(self.program, view))
        if self.by is None:
            return magnitude(weight)
        return out_in(view, self.by(view, out_in(view, weight)))

    def share(self, masks: Mapping[str, Tensor]) -> float:
        """The fraction of zeros."""
        counts = [(mask.numel(), int(mask.sum())) for mask in masks.values()]
        return 1 - sum(kept for _, kept in counts) / sum(size for size, _ in counts)

    def keep(self, score: Callable[[str], Tensor], sparsity: float) -> Iterable[tuple[str, Tensor]]:
        """N of every M, else exactly `floor(n * sparsity)` zeros of n entries in all."""
        if self.pattern is None:
            kept = keep_across([score(path) for path in self.views], sparsity)
            yield from zip(self.views, kept, strict=True)
        else:
            for path, view in self.views.items():
                scores = apart(view, out_in(view, score(path)))
                kept = [keep_nm(one, self.pattern) for one in scores]
                yield path, out_in(view, together(view, kept))

    def straight(self) -> AbstractContextManager[None]:
        """The masked weight's gradient is that of the weight."""
        return straight_masks(self.program, list(self.views.values()))
