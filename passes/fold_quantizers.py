"""fold-quantizers: store weights as they are rounded, without their scales.

    linear(x, Q(W, scales))  ->  linear(x, W'),  W' = Q(W, scales)

Outputs stay bitwise. For weights that stay dense, rounded alone (`insert-quantizers{activations=false}`), and
for formats that hold plain numbers: W' keeps its size. Codes and scales are stored by pack-nm.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.features.quantizers import drop_quantizers, quantized
from sparsify.ir.graph import sweep
from sparsify.ir.program import Program
from sparsify.ir.views.embedding import Table, rounded_table
from sparsify.ir.views.linear import Linear, effective_weight


@dataclass(frozen=True)
class FoldQuantizers(Pass):
    """Fold the rounding of every weight that has a quantizer."""

    name: ClassVar[str] = "fold-quantizers"
    moves: ClassVar[Moves] = ROUNDING

    def effect(self) -> Effect:
        """Drops quantizers with chosen scales; what is summed or scaled under them must be folded."""
        rounded = ["quantizers", "quantized"]
        return effect(needs=rounded, drops=rounded, bars=["lora", "row-scales"])

    def rewrite(self, program: Program, context: Context) -> int:
        """Round every weight once and let its linears read it; returns how many."""
        views = quantized(program)
        for view in views:
            if isinstance(view, Linear) and view.input_quantizer is not None:
                raise OptionError(
                    f"the input of @{view.weight} is rounded, which no weight can hold; "
                    "use insert-quantizers{activations=false}, or pack-nm in place of this"
                )
        with torch.no_grad():
            for view in {(type(view), view.weight): view for view in views}.values():
                if isinstance(view, Table):
                    weight = rounded_table(program, view)
                else:
                    weight = effective_weight(program, view)
                program.tensor(view.weight).copy_(weight)
        for view in views:
            drop_quantizers(view)
        sweep(program)
        return len({view.weight for view in views})
