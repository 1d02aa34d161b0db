"""Criteria for channels and heads: what each one measures, and what makes their layers comparable."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sparsify.data.sequences import Data
from sparsify.ir.axes.groups import Group, Heads
from sparsify.ir.axes.shrink.choice import group_scores, reduce
from sparsify.ir.program import Program
from sparsify.ir.views.linear import apart, effective_weight, out_in
from sparsify.select.gradients import gradient_moments, mask_derivatives
from sparsify.select.groups import MaskedAxis, input_index, matrices
from sparsify.select.statistics import Statistics, statistics_of_each
from sparsify.tensors import scores
from sparsify.tensors.importance import fluctuation, standardise

Normalise = Literal["none", "mean", "standard"]
# All that `choose-masks` may ask for.
Score = Literal[
    "magnitude",
    "wanda",
    "ria",
    "dsnot",
    "sparsegpt",
    "alps",
    "activation",
    "fluctuation",
    "taylor",
    "first-order",
    "second-order",
    "mixed",
    "influence",
    "frequency",
    "router",
]
# What must have run, or be at hand, before a criterion can say anything.
OF_STATISTICS = frozenset({"activation", "wanda", "fluctuation"})
OF_GRADIENTS = frozenset({"first-order", "second-order", "mixed"})
OF_DATA = OF_GRADIENTS | {"taylor"}


@dataclass(frozen=True)
class Criterion:
    """A score by name, and the data it may look at, some sequences at a time.

    `normalise` makes sites comparable in one ranking; see `importance`.
    """

    name: str
    normalise: Normalise = "none"
    data: Data | None = None
    indices: Sequence[int] = ()
    batch: int = 1


@dataclass(frozen=True)
class Evidence:
    """What gradients say: by mask `[size]` mean |dLoss / dmask|, by weight the mean of G and of G^2."""

    slopes: Mapping[str, Tensor] = field(default_factory=dict)
    moments: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def gather(program: Program, chosen: Sequence[MaskedAxis], by: Criterion) -> Evidence:
    """The evidence that a criterion needs; gradients of the second order are taken sample by sample."""
    if by.name not in OF_DATA:
        return Evidence()
    assert by.data is not None
    if by.name == "taylor":
        slopes = mask_derivatives(program, chosen, by.data, by.indices, by.batch)
        return Evidence(slopes=slopes)
    paths = {path for site in chosen for of in _axes(site.of) for path, _ in matrices(program, of)}
    return Evidence(moments=gradient_moments(program, by.data, by.indices, sorted(paths)))


def importance(program: Program, site: MaskedAxis, by: Criterion, evidence: Evidence) -> Tensor:
    """Importance `[size]` of each channel or query head of a site; larger is kept.

    With W every weight of the group (rows that make it, columns that read it) and x_j the inputs of the
    group where the mask stands:

    - `magnitude`: `sum |W|`.
    - `wanda`: `sum_ij |W_ij| ||x_j||_2` over the reading columns (Wanda-sp, 2312.11983, section 4.1).
    - `activation`: `sum_j a_j^2`, a_j the L2 norm over sequences of the mean |x_j| in each, which ranks as
      the norm over the group (Minitron, 2407.14679, section 2.2).
    - `fluctuation`: `sum_j Var(x_j) ||W_:j||^2`; for heads each term is squared (FLAP, 2312.11983, section
      3.2, and its code).
    - `taylor`: mean |dLoss / dmask| (Michel et al. 2019, section 4.1).
    - `first-order`, `second-order`, `mixed`: `sum |W G|`, `sum |W^2 H|`, `sum |W G - W^2 H / 2|`, G the mean
      gradient and H its mean square (LLM-Pruner, 2305.11627, section 3.2).

    `normalise` is for rankings over several layers: `standard` takes the scores of a site in units of
    their spread, `mean` in units of their mean, then averages over a head's inputs.
    """
    values, index = _scored(program, site, by.name, evidence)
    if by.normalise == "none":
        return reduce(index, values, site.of.size)
    values = standardise(values) if by.normalise == "standard" else values / values.mean()
    return reduce(index, values, site.of.size) / reduce(
        index, torch.ones_like(values), site.of.size
    )


def weight_norm(program: Program, of: Group | Heads) -> Tensor:
    """The sum of |W| over every weight of a group, `[size]`."""
    return _summed(program, of, lambda path: scores.magnitude(program.tensor(path)))


def sensitivities(program: Program, of: Group | Heads, name: str, evidence: Evidence) -> Tensor:
    """The sum of `first-order`, `second-order` or `mixed` over every weight of a group, `[size]`."""
    return _summed(program, of, lambda path: _sensitivity(program, path, name, evidence))


def _scored(
    program: Program, site: MaskedAxis, name: str, evidence: Evidence
) -> tuple[Tensor, Tensor]:
    """Scores `[n]` and the channel or head of each: one for every input, or one for every group."""
    view, whole = site.mask.linear, torch.arange(site.of.size)
    if name == "taylor":
        return evidence.slopes[site.mask.path], whole
    if name == "magnitude":
        return weight_norm(program, site.of), whole
    if name in OF_GRADIENTS:
        return sensitivities(program, site.of, name, evidence), whole
    weight = out_in(view, effective_weight(program, view))
    each = zip(apart(view, weight), statistics_of_each(program, view), strict=True)
    values = torch.stack([_by_inputs(matrix, seen, name) for matrix, seen in each]).sum(0)
    if name == "fluctuation" and site.mask.kind == "heads":
        values = values.square()
    return values, input_index(site)


def _by_inputs(weight: Tensor, seen: Statistics, name: str) -> Tensor:
    """The score `[in]` of the inputs of a matrix `[out, in]` by what was seen of them."""
    if name == "activation":
        assert seen.level is not None  # a probe always has it
        return seen.level
    if name == "wanda":
        return scores.wanda(weight, seen.square).sum(0)
    return fluctuation(weight, seen.variance)


def _sensitivity(program: Program, path: str, name: str, evidence: Evidence) -> Tensor:
    weight, (gradient, curvature) = program.tensor(path), evidence.moments[path]
    if name == "first-order":
        return scores.taylor(weight, gradient)
    if name == "second-order":
        return scores.second_order(weight, curvature)
    return scores.mixed_order(weight, gradient, curvature)


def _summed(program: Program, of: Group | Heads, scored: Callable[[str], Tensor]) -> Tensor:
    """Scores of single weights summed over each group; a KV group's own are shared by its query heads."""
    total = torch.zeros(of.size)
    seen: set[tuple[str, int]] = set()
    for part in _axes(of):
        for path, dim in matrices(program, part):
            if (path, dim) not in seen:
                seen.add((path, dim))
                summed = group_scores(part, path, dim, scored(path)).float().cpu()
                copies = of.size // part.size
                total += (summed / copies).repeat_interleave(copies)
    return total


def _axes(of: Group | Heads) -> list[Group | Heads]:
    """The axis itself, then that of the KV groups its query heads share."""
    return [of, of.kv] if isinstance(of, Heads) and of.kv is not None else [of]
