"""fold-bias: add every inserted bias to the linear's own, which is made where there is none.

    linear(x, W) + b      ->  linear(x, W, b)
    linear(x, W, a) + b   ->  linear(x, W, a + b)

`W [out, in], a, b [out]`. A b of zeros makes no bias. Outputs stay up to rounding.
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.ir.features.bias import added_biases, fold_bias
from sparsify.ir.program import Program


@dataclass(frozen=True)
class FoldBias(Pass):
    """Fold every added bias."""

    name: ClassVar[str] = "fold-bias"
    moves: ClassVar[Moves] = ROUNDING

    def effect(self) -> Effect:
        """Needs and drops the biases."""
        return effect(needs=["bias"], drops=["bias"])

    def rewrite(self, program: Program, context: Context) -> int:
        """Fold every bias; returns how many."""
        found = added_biases(program)
        for item in found:
            fold_bias(program, item)
        return len(found)
