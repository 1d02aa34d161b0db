"""prune-experts: remove the experts that masks leave out, with their rows of the router.

    top-k of where(mask, linear(x, R), -inf), E   ->   top-k of linear(x, R[kept]), E[kept]

`R [experts, in]` is the router, `E [experts, out, in]` the matrices of the experts. An expert with a score
of -inf was chosen by no token, so outputs stay up to rounding.
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.ir.program import Program
from sparsify.select.kinds.catalogue import KINDS


@dataclass(frozen=True)
class PruneExperts(Pass):
    """Remove masked experts from every tensor that carries them."""

    name: ClassVar[str] = "prune-experts"
    moves: ClassVar[Moves] = ROUNDING

    def effect(self) -> Effect:
        """Needs and drops the masks."""
        return effect(needs=["mask.experts"], drops=["mask.experts"], bars=["row-scales"])

    def rewrite(self, program: Program, context: Context) -> int:
        """Slice, drop the masks, record what was kept."""
        return KINDS["experts"].remove(program)
