"""One linear pruned at once, from its weight and what was seen of its input."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from sparsify.errors import OptionError
from sparsify.select.statistics import Statistics
from sparsify.select.weights import Target
from sparsify.tensors import scores
from sparsify.tensors.alps import alps
from sparsify.tensors.dsnot import dsnot
from sparsify.tensors.masks import keep_global, keep_nm, keep_rows
from sparsify.tensors.sparsegpt import sparsegpt

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
    target: Target
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
        """Whether `sum x x^T` is wanted of the input."""
        return self.method in _MOVING

    def __call__(self, weight: Tensor, seen: Statistics) -> tuple[Tensor, Tensor]:
        """The pruned weight and the keep-mask, both `[out, in]`, of a weight `[out, in]`."""
        if self.method in _MOVING:
            assert seen.gram is not None
            prune = sparsegpt if self.method == "sparsegpt" else alps
            return prune(
                weight,
                seen.gram,
                sparsity=self.target.sparsity,
                pattern=self.target.pattern,
                damping=self.damping,
            )
        score, scope = self._score(weight, seen)
        mask = self._keep(score, scope if self.scope == "auto" else self.scope)
        if self.method == "dsnot":
            mean = seen.total / seen.tokens
            variance = seen.square / seen.tokens - mean.square()
            mask = dsnot(weight, mask, score, mean, variance, pattern=self.target.pattern)
        return weight * mask, mask

    def _score(self, weight: Tensor, seen: Statistics) -> tuple[Tensor, str]:
        """The scores `[out, in]` of a method, and what its paper ranks them against."""
        if self.method == "magnitude":
            return scores.magnitude(weight), "layer"
        if self.method == "ria":
            return scores.ria(weight, seen.square), "layer"
        return scores.wanda(weight, seen.square, seen.tokens), "row"

    def _keep(self, score: Tensor, scope: str) -> Tensor:
        if self.target.pattern is not None:
            return keep_nm(score, self.target.pattern)
        keep: Callable[[Tensor, float], Tensor] = keep_rows if scope == "row" else keep_global
        return keep(score, self.target.fraction)
