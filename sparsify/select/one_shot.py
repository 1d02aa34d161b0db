"""One linear pruned at once, from its weight and what was seen of its input."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from sparsify.errors import OptionError
from sparsify.select.statistics import Statistics
from sparsify.select.weights import Target
from sparsify.tensors import scores
from sparsify.tensors.masks import keep_global, keep_nm, keep_rows
from sparsify.tensors.sparsegpt import sparsegpt

Method = Literal["magnitude", "wanda", "sparsegpt"]


@dataclass(frozen=True)
class OneShot:
    """How one linear is pruned: a method, a target, and what weights are ranked against.

    `scope` is `row` or `layer`, or `auto` for what the method's paper does; a pattern ranks within its
    groups. `damping` is SparseGPT's.
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
        return self.method == "sparsegpt"

    def __call__(self, weight: Tensor, seen: Statistics) -> tuple[Tensor, Tensor]:
        """The pruned weight and the keep-mask, both `[out, in]`, of a weight `[out, in]`."""
        if self.method == "sparsegpt":
            assert seen.gram is not None
            target = self.target
            return sparsegpt(
                weight,
                seen.gram,
                sparsity=target.sparsity,
                pattern=target.pattern,
                damping=self.damping,
            )
        if self.method == "wanda":
            score, scope = scores.wanda(weight, seen.square, seen.tokens), "row"
        else:
            score, scope = scores.magnitude(weight), "layer"
        mask = self._keep(score, scope if self.scope == "auto" else self.scope)
        return weight * mask, mask

    def _keep(self, score: Tensor, scope: str) -> Tensor:
        if self.target.pattern is not None:
            return keep_nm(score, self.target.pattern)
        keep: Callable[[Tensor, float], Tensor] = keep_rows if scope == "row" else keep_global
        return keep(score, self.target.fraction)
