"""insert-gates: a trainable factor for each input of a linear.

linear(x, W)  ->  linear(gate(x, g), W)        gate(x, g) = x * clamp(g, 0, 1),  g [in], ones at first
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify import Context, Program
from sparsify.engine.contract import NOTHING, Effect, Moves, Pass, effect
from sparsify.ir.views.targets import targeted
from sparsify_gates.feature import add_gate


@dataclass(frozen=True)
class InsertGates(Pass):
    """Gate what the targeted linears take in."""

    name: ClassVar[str] = "insert-gates"
    moves: ClassVar[Moves] = NOTHING
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Adds the gates."""
        return effect(adds=["gates"])

    def check(self, program: Program) -> None:
        """Globs must match."""
        targeted(program, self.targets, self.ignore)

    def rewrite(self, program: Program, context: Context) -> int:
        """Gate every target; returns how many."""
        views = targeted(program, self.targets, self.ignore)
        for view in views:
            add_gate(program, view)
        return len(views)
