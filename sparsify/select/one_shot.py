"""One linear pruned at once, from its weight and what was seen of its input."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from sparsify.errors import OptionError
from sparsify.ir.program import Program
from sparsify.ir.views.linear import (
    Linear,
    apart,
    branched_weight,
    composed_weight,
    out_in,
    together,
)
from sparsify.select.statistics import Statistics, statistics_of_each
from sparsify.select.weights import Scope, Target, keep, store_scales, store_weight
from sparsify.tensors import scores
from sparsify.tensors.alps import alps
from sparsify.tensors.dsnot import dsnot
from sparsify.tensors.packing.layout import BITS
from sparsify.tensors.quantize import SCALES, Grid
from sparsify.tensors.sparsegpt import sparsegpt, sparsegpt_rounded

Method = Literal["magnitude", "wanda", "ria", "dsnot", "sparsegpt", "alps"]
# Methods that move the weights they keep, and need `sum x x^T` for it.
_MOVING = ("sparsegpt", "alps")


@dataclass(frozen=True)
class OneShot:
    """How one linear is pruned: a method, a target, and what weights are ranked against.

    `scope` is `row` or `layer`, or `auto` for what the method's paper does; a pattern ranks within its
    groups. `damping` is that of `sparsegpt` and `alps`, which take no scope.
    """

    method: Method
    wanted: Target
    scope: Literal["auto", "row", "layer"] = "auto"
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise OptionError(
                f"score={self.method} does not prune a linear by itself; "
                f"use {', '.join(get_args(Method))}"
            )

    @property
    def needs_gram(self) -> bool:
        """Whether `sum x x^T` is wanted of the input; such a method moves what it keeps."""
        return self.method in _MOVING

    @property
    def needs_statistics(self) -> bool:
        """Whether anything must have been seen of the input."""
        return self.method != "magnitude"

    def __call__(self, weight: Tensor, seen: Statistics | None) -> tuple[Tensor, Tensor]:
        """The pruned weight and the keep-mask, both `[out, in]`, of a weight `[out, in]`."""
        if not self.needs_statistics:
            mask = self._keep(scores.magnitude(weight), "layer")
            return weight * mask, mask
        assert seen is not None
        if self.method in _MOVING:
            assert seen.gram is not None
            prune = sparsegpt if self.method == "sparsegpt" else alps
            return prune(
                weight,
                seen.gram,
                sparsity=self.wanted.sparsity,
                pattern=self.wanted.pattern,
                damping=self.damping,
            )
        if self.method == "ria":
            mask = self._keep(scores.ria(weight, seen.square), "layer")
            return weight * mask, mask
        score = scores.wanda(weight, seen.square, seen.tokens)
        mask = self._keep(score, "row")
        if self.method == "dsnot":
            mask = dsnot(weight, mask, score, seen.mean, seen.variance, pattern=self.wanted.pattern)
        return weight * mask, mask

    def rounded(
        self, weight: Tensor, seen: Statistics | None, grid: Grid
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As a call, by `sparsegpt` alone: the kept weights on a grid, and its scales `[out, groups]`."""
        assert self.method == "sparsegpt"
        assert seen is not None
        assert seen.gram is not None
        return sparsegpt_rounded(
            weight,
            seen.gram,
            grid,
            sparsity=self.wanted.sparsity,
            pattern=self.wanted.pattern,
            damping=self.damping,
        )

    def _keep(self, score: Tensor, own: Scope) -> Tensor:
        """The mask by scores `[out, in]`, ranked as asked or as the method's `own` paper does."""
        return keep(score, self.wanted, own if self.scope == "auto" else self.scope)


def prune_linears(
    program: Program,
    views: Mapping[str, Linear],
    how: Mapping[str, OneShot],
    told: Callable[[], None] = lambda: None,
    *,
    scales: str | None = None,
) -> dict[str, Tensor]:
    """Choose the masks of linears one by one, by weight path; weights are moved where the method does.

    A branch beside a weight stays: of a weight that moves, `W + c B A` becomes what the method gives.
    With `scales`, how they are chosen, weights are rounded for their quantizers while they move.
    Returns the keep-masks `[out, in]`, of experts `[experts, out, in]`, each by the tokens sent to it. Raises
    OptionError when a probe has no Gram matrix that is needed, or a weight no quantizer.
    """
    masks = {}
    for path, view in views.items():
        one = how[path]
        weight = out_in(view, composed_weight(program, view))
        seen = _seen(program, view, one)
        if scales is None:
            new, masks[path] = prune_each(one, view, weight, seen)
        else:
            grid = _grid(view, scales)
            pairs = zip(apart(view, weight), seen, strict=True)
            both = [one.rounded(*pair, grid) for pair in pairs]
            new, masks[path], chosen = (together(view, parts) for parts in zip(*both, strict=True))
            store_scales(program, view, chosen)
        if one.needs_gram:
            branch = branched_weight(program, view) - program.tensor(path).detach()
            store_weight(program, view, new.to(branch.dtype) - out_in(view, branch))
        told()
    return masks


def prune_each(
    how: OneShot, view: Linear, weight: Tensor, seen: Sequence[Statistics | None]
) -> tuple[Tensor, Tensor]:
    """The pruned weight and the keep-mask of a linear `[out, in]`, matrix by matrix where it has several."""
    pairs = zip(apart(view, weight), seen, strict=True)
    new, masks = zip(*(how(matrix, known) for matrix, known in pairs), strict=True)
    return together(view, new), together(view, masks)


def _seen(program: Program, view: Linear, one: OneShot) -> Sequence[Statistics | None]:
    """What was seen of the input of each matrix; None where the method looks at weights alone."""
    if not one.needs_statistics:
        return [None] * (len(program.tensor(view.weight)) if view.stacked else 1)
    seen = statistics_of_each(program, view)
    if one.needs_gram and any(known.gram is None for known in seen):
        raise OptionError(
            f"score={one.method} needs insert-probes{{gram=true}} at the input of @{view.weight}"
        )
    return seen


def _grid(view: Linear, scales: str) -> Grid:
    """The grid of a weight's quantizer, its scales chosen by name."""
    if view.quantizer is None:
        raise OptionError(
            f"@{view.weight} has no quantizer, which scales={scales} sets; "
            "widen the targets of insert-quantizers"
        )
    return Grid(SCALES[scales], view.quantizer.group, BITS[view.quantizer.values])
