"""Masks for single weights: scores by name, and the comparison group they are ranked in."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.ir.program import Program
from sparsify.ir.views import Linear, composed_weight, out_in
from sparsify.select.statistics import by_wanda
from sparsify.tensors import scores
from sparsify.tensors.masks import check_nm, keep_across, keep_global, keep_nm, keep_rows
from sparsify.tensors.pattern import Pattern

Scope = Literal["row", "layer", "global"]
Gradients = Mapping[str, Tensor]


@dataclass(frozen=True)
class Target:
    """How many weights go: a sparsity in [0, 1), or a pattern N:M (N kept of every M inputs)."""

    sparsity: float | None = None
    pattern: Pattern | None = None

    @classmethod
    def of(cls, sparsity: float | None, pattern: str | None) -> "Target":
        """A target from options; OptionError when they are missing, out of range or in conflict."""
        if (sparsity is None) == (pattern is None):
            raise OptionError(
                "choose either a sparsity, as in sparsity=0.5, or a pattern, as in 2:4"
            )
        if sparsity is not None and not 0 <= sparsity < 1:
            raise OptionError(f"sparsity {sparsity} is not in [0, 1)")
        return cls(sparsity, Pattern.parse(pattern) if pattern is not None else None)

    @classmethod
    def planned(cls, share: str) -> "Target":
        """A target as `allocate-sparsity` writes it into the plan: a number, or N:M."""
        return cls.of(None, share) if ":" in share else cls.of(float(share), None)

    @property
    def fraction(self) -> float:
        """The fraction of zeros aimed at."""
        if self.pattern is not None:
            return self.pattern.sparsity
        assert self.sparsity is not None
        return self.sparsity


def targets_of(program: Program, paths: Iterable[str], target: Target | None) -> dict[str, Target]:
    """What each weight is to become: one target for all, or (None) its share of the plan; OptionError."""
    if target is not None:
        return dict.fromkeys(paths, target)
    shares = program.plan["shares"]
    for path in paths:
        if path not in shares:
            raise OptionError(
                f"allocate-sparsity gave @{path} no share; give both passes the same targets"
            )
    return {path: Target.planned(shares[path]) for path in paths}


def check_axes(program: Program, views: Iterable[Linear], target: Target) -> None:
    """Refuse a pattern that the inputs of a linear cannot hold; OptionError."""
    if target.pattern is not None:
        for view in views:
            inputs = out_in(view, program.tensor(view.weight)).shape[1]
            target.pattern.check_axis(inputs, f"@{view.weight}")


def score(program: Program, view: Linear, name: str, gradients: Gradients) -> Tensor:
    """Scores `[out, in]` of a linear's weight, masked and branched, that compare between linears."""
    weight = out_in(view, composed_weight(program, view))
    if name == "magnitude":
        return scores.magnitude(weight)
    if name == "taylor":
        return scores.taylor(weight, out_in(view, gradients[view.weight]))
    return by_wanda(program)(view, weight)


def masks_by_score(scored: Mapping[str, Tensor], target: Target, scope: Scope) -> dict[str, Tensor]:
    """Keep-masks `[out, in]` by weight path: N:M in each row, else ranked per row, layer or globally."""
    if target.pattern is not None:
        return {path: keep_nm(value, target.pattern) for path, value in scored.items()}
    sparsity = target.fraction
    if scope == "global":
        return dict(zip(scored, keep_across(list(scored.values()), sparsity), strict=True))
    keep: Callable[[Tensor, float], Tensor] = keep_rows if scope == "row" else keep_global
    return {path: keep(value, sparsity) for path, value in scored.items()}


def store_mask(program: Program, view: Linear, mask: Tensor) -> None:
    """Write a keep-mask `[out, in]` into the mask buffer of a linear."""
    assert view.mask is not None
    with torch.no_grad():
        program.tensor(view.mask).copy_(out_in(view, mask))


def store_weight(program: Program, view: Linear, weight: Tensor) -> None:
    """Write values `[out, in]` into the weight of a linear."""
    with torch.no_grad():
        program.tensor(view.weight).copy_(out_in(view, weight))


def assert_reached(masks: Mapping[str, Tensor], target: Target) -> None:
    """The zeros counted must be the zeros asked for: exact N:M, or the fraction within a row's rounding."""
    if target.pattern is not None:
        for mask in masks.values():
            check_nm(mask, target.pattern)
        return
    total = sum(mask.numel() for mask in masks.values())
    zeros = total - sum(int(mask.sum()) for mask in masks.values())
    rounding = sum(mask.shape[0] for mask in masks.values()) + 1
    if abs(zeros - target.fraction * total) > rounding:
        raise SparsifyError(
            f"{zeros} of {total} weights were pruned, not the sparsity {target.fraction}"
        )
