"""fold-scales: multiply the scales of rows into the weights.

    linear(x, S * mask * W)  ->  linear(x, mask * W'),  W' = S * W

`W [out, in], S [out, blocks]`. A scale is the same over its block, so zeros stay where they are and so does
the order within a group of M. Outputs stay up to rounding.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.ir.features.composed import take_out
from sparsify.ir.features.row_scales import scaled_linears
from sparsify.ir.graph import sweep
from sparsify.ir.ops.scale_weight import scale_weight
from sparsify.ir.program import Program


@dataclass(frozen=True)
class FoldScales(Pass):
    """Fold the scales of every row."""

    name: ClassVar[str] = "fold-scales"
    moves: ClassVar[Moves] = ROUNDING

    def effect(self) -> Effect:
        """Drops the scales; branches must be folded first, since the scales stand around them."""
        return effect(needs=["row-scales"], drops=["row-scales"], bars=["lora"])

    def rewrite(self, program: Program, context: Context) -> int:
        """Fold every scale; returns of how many weights."""
        folded = set()
        for view in scaled_linears(program):
            assert view.row_scales is not None
            if view.weight not in folded:
                weight, scales = program.tensor(view.weight), program.tensor(view.row_scales)
                with torch.no_grad():
                    weight.copy_(scale_weight(weight, scales, view.transposed))
                folded.add(view.weight)
            take_out(program, view, scales=True)
        sweep(program)
        return len(folded)
