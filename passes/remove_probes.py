"""remove-probes: take every probe and its statistics out of the graph.

    linear(probe(x, statistics), W)  ->  linear(x, W)

A probe is the identity, so outputs stay bitwise.
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.engine.contract import NOTHING, Context, Effect, Moves, Pass, effect
from sparsify.ir.graph import redirect, sweep
from sparsify.ir.program import Program
from sparsify.ir.views.probe import probes


@dataclass(frozen=True)
class RemoveProbes(Pass):
    """Take out every probe."""

    name: ClassVar[str] = "remove-probes"
    moves: ClassVar[Moves] = NOTHING

    def effect(self) -> Effect:
        """Drops probes and what they know."""
        return effect(needs=["probe"], drops=["probe", "stats"])

    def rewrite(self, program: Program, context: Context) -> int:
        """Let every reader of a probe read what the probe watched."""
        found = list(probes(program))
        for view in found:
            redirect(view.node, view.x)
        sweep(program)
        return len(found)
