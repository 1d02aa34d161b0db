"""prune-hidden: remove the features of the residual width that the mask leaves out.

    x [..., hidden], norms [hidden], embeddings [words, hidden], W [out, hidden], W [hidden, in]
      ->  the kept features of each

Norms then average over the kept features, as they did under the mask. A tied embedding is cut once.
Outputs stay up to rounding.
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.ir.program import Program
from sparsify.select.kinds.catalogue import KINDS


@dataclass(frozen=True)
class PruneHidden(Pass):
    """Remove masked features of the residual width from every tensor that carries them."""

    name: ClassVar[str] = "prune-hidden"
    moves: ClassVar[Moves] = ROUNDING

    def effect(self) -> Effect:
        """Needs and drops the mask."""
        return effect(needs=["mask.hidden"], drops=["mask.hidden"], bars=["row-scales"])

    def rewrite(self, program: Program, context: Context) -> int:
        """Slice, drop the mask, record what was kept."""
        return KINDS["hidden"].remove(program)
