"""fold-masks: multiply masks into the weights, where they become plain zeros.

    weights:          linear(x, W * mask)          ->  linear(x, W'),  W' = W * mask
    channels, heads:  linear(x * expand(mask), W)  ->  linear(x, W'),  W'_ij = W_ij mask_j

`W [out, in]`. Outputs stay up to rounding. The zeros of a group mask keep their place and cost: to
remove them, use prune-channels or prune-heads.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.features.group_mask import drop_group_mask, expand_group_mask, group_masks
from sparsify.ir.features.weight_side import drop_composition
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear, effective_weight, linears, out_in


@dataclass(frozen=True)
class FoldMasks(Pass):
    """Fold the masks of one or more kinds."""

    name: ClassVar[str] = "fold-masks"
    moves: ClassVar[Moves] = ROUNDING
    of: tuple[Literal["weights", "channels", "heads"], ...] = ("weights",)

    def effect(self) -> Effect:
        """Drops one feature for each kind; branches must be folded first."""
        features = [f"mask.{kind}" for kind in self.of]
        scaled = [] if self.of == ("weights",) else ["row-scales"]
        return effect(needs=features, drops=features, bars=scaled)

    def rewrite(self, program: Program, context: Context) -> int:
        """Fold every mask; returns how many."""
        return sum(
            _fold_weights(program) if kind == "weights" else _fold_groups(program, kind)
            for kind in self.of
        )


def _fold_weights(program: Program) -> int:
    folded = set()
    for view in [v for v in linears(program) if v.mask is not None]:
        assert view.mask is not None
        _refuse_branch(view)
        if view.weight not in folded:
            weight, mask = program.tensor(view.weight), program.tensor(view.mask)
            with torch.no_grad():
                weight.copy_(torch.where(mask, weight, torch.zeros_like(weight)))
            folded.add(view.weight)
        drop_composition(program, view, mask=True)
    return len(folded)


def _refuse_branch(view: Linear) -> None:
    if view.branch is not None:
        raise OptionError(f"@{view.weight} has a branch under its mask; put fold-lora first")


def _fold_groups(program: Program, kind: str) -> int:
    found = [mask for mask in group_masks(program) if mask.kind == kind]
    for mask in found:
        view = mask.linear
        _refuse_branch(view)
        stored = program.tensor(view.weight)
        weight = out_in(view, effective_weight(program, view))
        kept = expand_group_mask(program, mask, weight.shape[-1])
        with torch.no_grad():
            stored.copy_(out_in(view, torch.where(kept, weight, torch.zeros_like(weight))))
        drop_group_mask(program, mask)
    return len(found)
