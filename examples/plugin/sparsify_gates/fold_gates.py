"""fold-gates: gates multiplied into the weights that take their inputs.

linear(gate(x, g), W)  ->  linear(x, W diag(clamp(g, 0, 1)))
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsify import Context, Program
from sparsify.engine.contract import ROUNDING, Effect, Moves, Pass, effect
from sparsify.ir.views.linear import linears, out_in
from sparsify_gates.feature import drop_gate, gate_path, gates


@dataclass(frozen=True)
class FoldGates(Pass):
    """Fold every gate into its weight."""

    name: ClassVar[str] = "fold-gates"
    moves: ClassVar[Moves] = ROUNDING

    def effect(self) -> Effect:
        """Needs and drops the gates; masks and branches on the weight come off first."""
        return effect(needs=["gates"], drops=["gates"], bars=["mask.weights", "lora"])

    @torch.no_grad()
    def rewrite(self, program: Program, context: Context) -> int:
        """Fold every gate; returns how many."""
        found = gates(program)
        for view in {view.weight: view for view in linears(program)}.values():
            if program.has(gate_path(view.weight)):
                g = program.tensor(gate_path(view.weight)).clamp(0, 1)
                out_in(view, program.tensor(view.weight)).mul_(g)
        for item in found:
            drop_gate(program, item)
        return len(found)
