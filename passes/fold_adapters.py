"""fold-adapters: add every branch that stands beside a weight into it.

    linear(x, W) + linear(linear(x, A), B)   ->   linear(x, W'),   W' = W + B A

`W [out, in], A [rank, in], B [out, rank]`; the product is taken in float64 and rounded once, so outputs stay
up to rounding. A weight with a mask or a quantizer, or a packed one, could not take the branch in: what
SLiM puts beside it gives masked entries a value, and would fill the zeros.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.features.adapters import adapters
from sparsify.ir.features.beside import drop_beside
from sparsify.ir.program import Program
from sparsify.ir.views.linear import out_in
from sparsify.tensors.lowrank import delta


@dataclass(frozen=True)
class FoldAdapters(Pass):
    """Merge every adapter into its weight."""

    name: ClassVar[str] = "fold-adapters"
    moves: ClassVar[Moves] = ROUNDING

    def effect(self) -> Effect:
        """Drops adapters; the weights must be plain."""
        barred = ["mask.weights", "quantizers", "packed", "lora", "row-scales"]
        return effect(needs=["adapters"], drops=["adapters"], bars=barred)

    def rewrite(self, program: Program, context: Context) -> int:
        """Merge each adapter once and take it out beside every use; returns how many."""
        found = adapters(program)
        for one in found:
            weight = program.tensor(one.linear.weight)
            a, b = program.tensor(one.a), program.tensor(one.b)
            new = out_in(one.linear, weight.detach()).double() + delta(a, b, 1.0, torch.float64)
            if not bool(torch.isfinite(new).all()):
                raise OptionError(
                    f"the adapter of @{one.linear.weight} holds values that are not finite"
                )
            with torch.no_grad():
                weight.copy_(out_in(one.linear, new))
            drop_beside(program, one)
        return len(found)
