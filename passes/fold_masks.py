"""fold-masks: multiply masks into the weights, where they become plain zeros.

    weights:          linear(x, W * mask)          ->  linear(x, W'),  W' = W * mask
    convolutions:     conv(x, W * mask)            ->  conv(x, W'),    W' = W * mask
    channels, heads:  linear(x * expand(mask), W)  ->  linear(x, W'),  W'_ij = W_ij mask_j

`W [out, in]`, of a convolution `[out, in / groups, *window]`. Outputs stay up to rounding. The zeros of a
group mask keep their place and cost: to remove them, use prune-channels or prune-heads.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.ir.program import Program
from sparsify.select.kinds.catalogue import KINDS


@dataclass(frozen=True)
class FoldMasks(Pass):
    """Fold the masks of one or more kinds."""

    name: ClassVar[str] = "fold-masks"
    moves: ClassVar[Moves] = ROUNDING
    of: tuple[Literal["weights", "convolutions", "channels", "heads"], ...] = ("weights",)

    def effect(self) -> Effect:
        """Drops one feature for each kind; branches must be folded first."""
        features = [f"mask.{kind}" for kind in self.of]
        scaled = [] if self.of == ("weights",) else ["row-scales"]
        return effect(needs=features, drops=features, bars=scaled)

    def rewrite(self, program: Program, context: Context) -> int:
        """Fold every mask; returns how many."""
        return sum(KINDS[name].fold(program) for name in self.of)
