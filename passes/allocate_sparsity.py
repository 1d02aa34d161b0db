"""allocate-sparsity: decide how sparse each layer is to be; `choose-masks` without a sparsity follows it.

    sum_i n_i s_i = sparsity sum_i n_i,   s_i the share of zeros of layer i with n_i weights

`rmi`: little from layers that share little with others, by the CKA of what enters them (LoSA, 2502.14816,
section 3.2). `owl`: little from layers with outliers in Wanda's score. `alpha`: little from layers whose
spectra have heavy tails. `atp`: more with depth, in even steps. `global`: what one threshold on |W| over all
layers would leave. With `m=8` whole N of N:8 by largest remainder. Nothing else moves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sparsify.data.sequences import sample
from sparsify.engine.contract import FUNCTION, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear, apart, composed_weight, out_in
from sparsify.ir.views.targets import targeted
from sparsify.select.layers import Layer, feature_grams, layers_of
from sparsify.select.statistics import by_wanda
from sparsify.select.weights import NO_MASK
from sparsify.tensors.alignment import redundancy
from sparsify.tensors.allocation import (
    arithmetic,
    by_outliers,
    by_tails,
    fill,
    hill_exponent,
    kept_of_m,
    outlier_share,
)
from sparsify.tensors.masks import keep_across

# What the papers take; `rmi` by how far the target is, `atp` has to be searched.
_SPREADS = {"owl": 0.08, "alpha": 0.3}
_RMI = ((0.5, 0.01), (0.6, 0.02), (1.0, 0.03))


@dataclass(frozen=True)
class AllocateSparsity(Pass):
    """Give every layer its share of the zeros.

    `spread` is how far a layer may be off the mean (`rmi`, `owl`), the relative distance (`alpha`) or the
    step from layer to layer (`atp`); None takes the paper's, for `rmi` with `m` one entry of a group. `times`
    is the outlier threshold of `owl` in means; `samples`, `batch` and `debiased` are for `rmi`.
    """

    name: ClassVar[str] = "allocate-sparsity"
    moves: ClassVar[Moves] = FUNCTION
    sparsity: float = 0.5
    by: Literal["uniform", "rmi", "owl", "alpha", "atp", "global"] = "rmi"
    spread: float | None = None
    m: int | None = None
    times: float = 5.0
    samples: int = 64
    batch: int = 8
    debiased: bool = False
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Needs masks to give shares to, and statistics or data where layers are compared by them."""
        needs = ["mask.weights", "stats"] if self.by == "owl" else ["mask.weights"]
        return effect(needs=needs, sets=["shares"], wants=["data"] if self.by == "rmi" else [])

    def check(self, program: Program) -> None:
        """The sparsity and its spread must be fractions."""
        targeted(program, self.targets, self.ignore, experts=True)
        if not 0 <= self.sparsity < 1:
            raise OptionError(f"sparsity={self.sparsity} is not in [0, 1)")
        if self.by == "atp" and self.spread is None:
            raise OptionError("by=atp needs spread, the step from layer to layer, as in 0.01")
        if self.m is not None and self.m < 2:
            raise OptionError(f"m={self.m} is no group; use 4 or 8")
        if self.by == "rmi" and self.samples < (4 if self.debiased else 2):
            raise OptionError(f"samples={self.samples} are too few to compare layers")

    def rewrite(self, program: Program, context: Context) -> int:
        """Write the shares into the plan; returns the number of layers."""
        views = [
            v
            for v in targeted(program, self.targets, self.ignore, experts=True)
            if v.mask is not None
        ]
        if not views:
            raise OptionError(NO_MASK)
        layers = layers_of(program, views)
        sizes = torch.tensor([layer.size(program) for layer in layers], dtype=torch.float64)
        found = self._shares(program, context, layers, sizes)
        amounts = self._amounts(found, sizes)
        # A linear in no layer gets the mean.
        (mean,) = self._amounts(torch.tensor([self.sparsity]), torch.ones(1))
        shares = dict.fromkeys((view.weight for view in views), mean)
        for layer, amount in zip(layers, amounts, strict=True):
            shares.update(dict.fromkeys((view.weight for view in layer.views), amount))
        program.plan["shares"] = shares
        told = amounts if self.m is not None else [f"{value:.4f}" for value in found.tolist()]
        context.notes.append("layer by layer: " + " ".join(told))
        return len(layers)

    def _amounts(self, found: Tensor, sizes: Tensor) -> list[str]:
        """The shares as the plan holds them: a sparsity, or N:M."""
        if self.m is None:
            return [repr(float(value)) for value in found]
        return [f"{n}:{self.m}" for n in kept_of_m(found, sizes, self.m)]

    def _shares(
        self, program: Program, context: Context, layers: Sequence[Layer], sizes: Tensor
    ) -> Tensor:
        target = self.sparsity
        if self.by == "uniform":
            return torch.full_like(sizes, target)
        if self.by == "atp":
            assert self.spread is not None
            return arithmetic(self.spread, target, sizes)
        if self.by == "global":
            return self._global(program, layers)
        if self.by == "rmi":
            assert context.data is not None
            indices = sample(context.data, self.samples, context.seed)
            grams = feature_grams(program, layers, context.data, indices, self.batch)
            theta = redundancy(grams, debiased=self.debiased)
            # What a layer loses costs the more, the less of it the others know.
            return fill(sizes * torch.exp(-theta), target, self._spread(), sizes)
        spread = self._spread()
        if self.by == "owl":
            score = by_wanda(program)
            shares = [
                _mean(
                    layer,
                    lambda v: score(v, _weight(program, v)),
                    lambda one: outlier_share(one, self.times),
                )
                for layer in layers
            ]
            return by_outliers(torch.tensor(shares), target, spread, sizes)
        tails = [_mean(layer, lambda v: _weight(program, v), hill_exponent) for layer in layers]
        return by_tails(torch.tensor(tails), target, spread, sizes)

    def _spread(self) -> float:
        if self.spread is not None:
            return self.spread
        if self.by == "rmi":
            paper = next(value for most, value in _RMI if self.sparsity <= most)
            # Less than one entry of a group would vanish when N is rounded.
            return paper if self.m is None else max(paper, 1 / self.m)
        return _SPREADS[self.by]

    def _global(self, program: Program, layers: Sequence[Layer]) -> Tensor:
        views = [view for layer in layers for view in layer.views]
        masks = keep_across([_weight(program, view).abs() for view in views], self.sparsity)
        zeros = {v.weight: int((~mask).sum()) for v, mask in zip(views, masks, strict=True)}
        found = [
            sum(zeros[v.weight] for v in layer.views) / layer.size(program) for layer in layers
        ]
        return torch.tensor(found, dtype=torch.float64)


def _mean(
    layer: Layer, value: Callable[[Linear], Tensor], measure: Callable[[Tensor], float]
) -> float:
    """A measure of a layer: the mean over its matrices, those of experts one by one."""
    found = [measure(one) for view in layer.views for one in apart(view, value(view))]
    return sum(found) / len(found)


def _weight(program: Program, view: Linear) -> Tensor:
    return out_in(view, composed_weight(program, view))
