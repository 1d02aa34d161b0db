"""choose-masks: decide what stays.

    mask <- keep(score, sparsity or N:M)

Weights: `magnitude` |W| (one threshold a layer), `wanda` |W_ij| ||x_j|| (ranked in each row), `sparsegpt`
(block by block with error feedback; it also moves the kept weights), `taylor` |W dL/dW| (ranked over all
layers); an N:M pattern keeps N of every M inputs in each row. Channels and heads: `magnitude`,
`activation`, `wanda`, `taylor`, summed over the group. Experts and hidden: `magnitude`, at least
as many experts stay as a token is sent to. Layers and blocks: `magnitude`, the mean of |W| inside, all
ranked together. The text of the graph stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sparsify.engine.contract import FUNCTION, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError, SparsifyError
from sparsify.ir.axes.walk import analyse
from sparsify.ir.blockmask import KINDS
from sparsify.ir.groupmask import group_masks
from sparsify.ir.program import Program
from sparsify.ir.views import Linear, linears, targeted
from sparsify.select import groups, weights
from sparsify.select.gradients import mask_derivatives, weight_gradients
from sparsify.select.structure import choose_blocks, choose_experts, choose_width
from sparsify.select.weights import Target
from sparsify.tensors.masks import check_nm
from sparsify.train.data import sample

_SCOPES: Mapping[str, weights.Scope] = {"magnitude": "layer", "wanda": "row", "taylor": "global"}
_WITH_STATISTICS = {"wanda", "sparsegpt", "activation"}


@dataclass(frozen=True)
class ChooseMasks(Pass):
    """Choose the masks of one kind by a score, to a sparsity or an N:M pattern.

    `scope` is what weights are ranked against: `row`, `layer`, `global`, or `auto` for what the method's
    paper does; for groups `global` ranks over all layers and anything else keeps the same fraction in
    each. `rule` and `multiple` hold for heads and channels: whole KV groups or the same number `inside`
    each; the number kept is rounded up to a multiple. `samples` and `batch` are for `taylor`.
    """

    name: ClassVar[str] = "choose-masks"
    moves: ClassVar[Moves] = FUNCTION
    of: Literal["weights", "channels", "heads", "experts", "layers", "blocks", "hidden"] = "weights"
    score: Literal["magnitude", "wanda", "sparsegpt", "activation", "taylor"] = "magnitude"
    sparsity: float | None = None
    pattern: str | None = None
    scope: Literal["auto", "row", "layer", "global"] = "auto"
    rule: groups.Rule = "groups"
    multiple: int = 1
    damping: float = 0.01
    samples: int = 32
    batch: int = 4
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Needs the masks, and statistics or data when the score does."""
        needs = [f"mask.{self.of}"]
        needs += ["stats"] if self.score in _WITH_STATISTICS else []
        wants = ["data"] if self.score == "taylor" else []
        return effect(needs=needs, wants=wants, bars=["row-scales"])

    def check(self, program: Program) -> None:
        """Sparsity, pattern, score and globs must fit each other and the weights."""
        target = Target.of(self.sparsity, self.pattern)
        grouped = self.of != "weights"
        views = targeted(program, self.targets, self.ignore, experts=grouped)
        if self.of == "weights":
            if self.score == "activation":
                raise OptionError(
                    "score=activation is for channels and heads; use wanda for weights"
                )
            if target.pattern is not None:
                for view in views:
                    size = program.tensor(view.weight).shape[0 if view.transposed else 1]
                    target.pattern.check_axis(size, f"@{view.weight}")
        elif target.pattern is not None or self.score == "sparsegpt":
            raise OptionError(f"a pattern or score=sparsegpt is for weights, not for {self.of}")
        elif self.of in (*KINDS, "experts", "hidden") and self.score != "magnitude":
            raise OptionError(f"score={self.score} is not for {self.of}; choose magnitude")
        if self.multiple < 1:
            raise OptionError(f"multiple={self.multiple} must be at least 1")

    def rewrite(self, program: Program, context: Context) -> int:
        """Choose every mask; returns how many."""
        grouped = self.of != "weights"
        views = targeted(program, self.targets, self.ignore, experts=grouped)
        chosen = {view.weight for view in views}
        if self.of == "weights":
            return self._weights(program, context, chosen)
        if self.of == "hidden":
            assert self.sparsity is not None
            return choose_width(program, self.sparsity, self.multiple)
        if self.of == "experts":
            assert self.sparsity is not None
            return choose_experts(program, chosen, self.sparsity, self.multiple)
        if self.of in KINDS:
            assert self.sparsity is not None
            return choose_blocks(program, self.of, chosen, self.sparsity, self.multiple)
        return self._groups(program, context, chosen)

    def _weights(self, program: Program, context: Context, chosen: set[str]) -> int:
        views = {v.weight: v for v in linears(program) if v.mask is not None and v.weight in chosen}
        if not views:
            raise OptionError("no target has a mask; widen the targets, or those of insert-masks")
        target = Target.of(self.sparsity, self.pattern)
        if self.score == "sparsegpt":
            masks = self._sparsegpt(program, context, views, target)
        else:
            gradients = self._gradients(program, context)
            scope = _SCOPES[self.score] if self.scope == "auto" else self.scope
            scored = {p: weights.score(program, v, self.score, gradients) for p, v in views.items()}
            masks = weights.masks_by_score(scored, target, scope)
        for path, mask in masks.items():
            weights.store_mask(program, views[path], mask)
        _assert_reached(masks, target)
        return len(masks)

    def _sparsegpt(
        self, program: Program, context: Context, views: Mapping[str, Linear], target: Target
    ) -> dict[str, Tensor]:
        """Prune layer by layer, each from the statistics of the dense model."""
        masks = {}
        context.progress.start(self.name, len(views))
        for path, view in views.items():
            new, masks[path] = weights.sparsegpt_layer(program, view, target, self.damping)
            weights.store_weight(program, view, new)
            context.progress.advance()
        return masks

    def _groups(self, program: Program, context: Context, chosen: set[str]) -> int:
        found = [
            s
            for s in groups.sites(analyse(program), group_masks(program), self.of)
            if s.mask.linear.weight in chosen
        ]
        if not found:
            raise OptionError(
                f"no target has a mask of {self.of}; name the linears that take them in"
            )
        derivatives: Mapping[str, Tensor] = {}
        if self.score == "taylor":
            assert context.data is not None
            indices = sample(context.data, self.samples, context.seed)
            derivatives = mask_derivatives(program, found, context.data, indices, self.batch)
        scored = [groups.score(program, site, self.score, derivatives) for site in found]
        scored = groups.of_one_axis(scored, found)
        assert self.sparsity is not None
        masks = groups.keep(
            scored, found, self.sparsity, scope=self.scope, rule=self.rule, multiple=self.multiple
        )
        with torch.no_grad():
            for site, mask in zip(found, masks, strict=True):
                program.tensor(site.mask.path).copy_(mask)
        return len(masks)

    def _gradients(self, program: Program, context: Context) -> weights.Gradients:
        if self.score != "taylor":
            return {}
        assert context.data is not None
        indices = sample(context.data, self.samples, context.seed)
        return weight_gradients(program, context.data, indices, self.batch)


def _assert_reached(masks: Mapping[str, Tensor], target: Target) -> None:
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
