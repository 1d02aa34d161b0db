"""Masks for single weights: scores by name, and the comparison group they are ranked in."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from sparsify.errors import OptionError, SparsifyError
from sparsify.ir.program import Program
from sparsify.ir.views.composition import WeightQuantizer
from sparsify.ir.views.embedding import Table
from sparsify.ir.views.linear import Linear, apart, composed_weight, out_in, together
from sparsify.select.statistics import by_wanda
from sparsify.tensors import scores
from sparsify.tensors.masks import check_nm, keep_across, keep_global, keep_nm, keep_rows
from sparsify.tensors.pattern import Pattern

Scope = Literal["row", "layer", "global"]
Gradients = Mapping[str, Tensor]
EITHER = "choose either a sparsity, as in sparsity=0.5, or a pattern, as in 2:4"
NO_MASK = "no target has a mask; widen the targets, or those of insert-masks (an output head has to be named)"


@dataclass(frozen=True)
class Target:
    """How many weights go: a sparsity in [0, 1), or a pattern N:M (N kept of every M inputs)."""

    sparsity: float | None = None
    pattern: Pattern | None = None

    @classmethod
    def of(cls, sparsity: float | None, pattern: str | None) -> "Target":
        """A target from options; OptionError when they are missing, out of range or in conflict."""
        if (sparsity is None) == (pattern is None):
            raise OptionError(EITHER)
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


def masked(
    views: Iterable[Linear], places: Mapping[str, frozenset[str]] = MappingProxyType({})
) -> list[Linear]:
    """The linears with a mask, or that `places` says will have one; OptionError when there is none."""
    coming = places.get("mask.weights")
    found = [
        view
        for view in views
        if (view.mask is not None if coming is None else view.weight in coming)
    ]
    if not found:
        raise OptionError(NO_MASK)
    return found


def check_axes(program: Program, views: Iterable[Linear], target: Target) -> None:
    """Refuse a pattern that the inputs of a linear cannot hold; OptionError."""
    if target.pattern is not None:
        for view in views:
            inputs = out_in(view, program.tensor(view.weight)).shape[-1]
            target.pattern.check_axis(inputs, f"@{view.weight}")


def choose_together(
    program: Program,
    views: Mapping[str, Linear],
    name: str,
    gradients: Gradients,
    target: Target,
    scope: Scope,
) -> dict[str, Tensor]:
    """Keep-masks `[out, in]` by weight path, by scores that compare between linears: N:M, else by scope.

    Matrices of experts, `[experts, out, in]`, are linears of their own.
    """
    scored = {path: _score(program, view, name, gradients) for path, view in views.items()}
    if target.pattern is None and scope == "global":
        masks = keep_across(list(scored.values()), target.fraction)
        return dict(zip(scored, masks, strict=True))
    return {
        path: together(view, [keep(one, target, scope) for one in apart(view, scored[path])])
        for path, view in views.items()
    }


def keep(score: Tensor, target: Target, scope: Scope) -> Tensor:
    """The keep-mask of one weight by scores `[out, in]`: N:M in each row, else by row or over the whole."""
    if target.pattern is not None:
        return keep_nm(score, target.pattern)
    ranked = keep_rows if scope == "row" else keep_global
    return ranked(score, target.fraction)


def _score(program: Program, view: Linear, name: str, gradients: Gradients) -> Tensor:
    weight = out_in(view, composed_weight(program, view))
    if name == "taylor":
        return scores.taylor(weight, out_in(view, gradients[view.weight]))
    if name == "magnitude":
        return scores.magnitude(weight)
    if name == "wanda":
        return by_wanda(program)(view, weight)
    raise OptionError(f"score={name} compares weights of one linear alone; leave scope=global out")


def store_masks(
    program: Program,
    views: Mapping[str, Linear],
    masks: Mapping[str, Tensor],
    targets: Mapping[str, Target],
) -> None:
    """Write keep-masks `[out, in]` into the buffers of their linears, when they are what was asked for.

    Raises SparsifyError when zeros are not the pattern, or the sparsity within a row's rounding.
    """
    for target in set(targets.values()):
        assert_reached([masks[path] for path in views if targets[path] == target], target)
    with torch.no_grad():
        for path, view in views.items():
            assert view.mask is not None
            program.tensor(view.mask).copy_(out_in(view, masks[path]))


def store_weight(program: Program, view: Linear, weight: Tensor) -> None:
    """Write values `[out, in]` into the weight of a linear."""
    with torch.no_grad():
        program.tensor(view.weight).copy_(out_in(view, weight))


def store_scales(program: Program, view: Linear | Table, scales: Tensor) -> None:
    """Write scales, float16 `[out, groups]`, into a weight's quantizer, and switch that of its input on."""
    assert view.quantizer is not None
    with torch.no_grad():
        program.tensor(view.quantizer.scales).copy_(scales)
        if isinstance(view, Linear) and view.input_quantizer is not None:
            program.tensor(view.input_quantizer.on).fill_(True)


def require_scales(
    program: Program, view: Linear | Table, weight: Tensor, quantizer: WeightQuantizer
) -> None:
    """Refuse a weight `[out, in]` whose scales, or those of its input, are not chosen; OptionError."""
    scales = program.tensor(quantizer.scales)
    wide = scales.repeat_interleave(quantizer.group, -1)[..., : weight.shape[-1]]
    entering = view.input_quantizer if isinstance(view, Linear) else None
    off = entering is not None and not bool(program.tensor(entering.on))
    if off or bool(((wide == 0) & (weight != 0)).any()):
        raise OptionError(f"@{view.weight} has no scales yet; widen the targets of choose-scales")


def assert_reached(masks: Sequence[Tensor], target: Target) -> None:
    """The zeros counted must be the zeros asked for: exact N:M, or the fraction within a row's rounding."""
    if target.pattern is not None:
        for mask in masks:
            check_nm(mask.flatten(0, -2), target.pattern)
        return
    total = sum(mask.numel() for mask in masks)
    zeros = total - sum(int(mask.sum()) for mask in masks)
    rounding = sum(mask.numel() // mask.shape[-1] for mask in masks) + 1
    if abs(zeros - target.fraction * total) > rounding:
        raise SparsifyError(
            f"{zeros} of {total} weights were pruned, not the sparsity {target.fraction}"
        )
