"""remove-omission: the graph of the dense model again.

    linear(x, keep_rows(W, k, 0))  ->  linear(x, W)

The text is what it was before insert-omission; the weights are what training has made of them.
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.engine.contract import NOTHING, Context, Effect, Moves, Pass, effect
from sparsify.ir.features.omission import drop_omissions
from sparsify.ir.program import Program


@dataclass(frozen=True)
class RemoveOmission(Pass):
    """Take every choice out and put the sizes back as numbers."""

    name: ClassVar[str] = "remove-omission"
    moves: ClassVar[Moves] = NOTHING

    def effect(self) -> Effect:
        """Needs and drops the feature."""
        return effect(needs=["omission"], drops=["omission"])

    def rewrite(self, program: Program, context: Context) -> int:
        """Remove; returns how many places there were."""
        return drop_omissions(program)
