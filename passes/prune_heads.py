"""prune-heads: remove the attention heads that masks leave out.

    query, key, value rows and output-projection columns of the kept heads stay

Whole KV groups go with their query heads, or the same number of query heads inside each group (the
masks decide; other choices are refused). Head counts written into the graph are rewritten. Outputs stay
up to rounding.
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.ir.program import Program
from sparsify.select.kinds.catalogue import KINDS


@dataclass(frozen=True)
class PruneHeads(Pass):
    """Remove masked query heads, and KV groups that lost all of theirs."""

    name: ClassVar[str] = "prune-heads"
    moves: ClassVar[Moves] = ROUNDING

    def effect(self) -> Effect:
        """Needs and drops the masks."""
        return effect(needs=["mask.heads"], drops=["mask.heads"], bars=["row-scales"])

    def rewrite(self, program: Program, context: Context) -> int:
        """Slice, drop the masks, record what was kept."""
        return KINDS["heads"].remove(program)
