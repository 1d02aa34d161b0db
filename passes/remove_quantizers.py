"""remove-quantizers: take every quantizer out of the graph again, before its scales are chosen.

    linear(R(x), Q(W, 0))  ->  linear(x, W)

A quantizer without scales is the identity, so outputs stay bitwise; one with scales goes by pack-nm.
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.engine.contract import NOTHING, Context, Effect, Moves, Pass, effect
from sparsify.ir.features.quantizers import drop_quantizers, quantized
from sparsify.ir.graph import sweep
from sparsify.ir.program import Program


@dataclass(frozen=True)
class RemoveQuantizers(Pass):
    """Take out every quantizer."""

    name: ClassVar[str] = "remove-quantizers"
    moves: ClassVar[Moves] = NOTHING

    def effect(self) -> Effect:
        """Drops quantizers; refused once choose-scales has switched them on."""
        return effect(needs=["quantizers"], drops=["quantizers"], bars=["quantized"])

    def rewrite(self, program: Program, context: Context) -> int:
        """Let every linear read what its quantizers read; returns how many weights had one."""
        found = quantized(program)
        for view in found:
            drop_quantizers(view)
        sweep(program)
        return len({view.weight for view in found})
