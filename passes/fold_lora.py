"""fold-lora: add every low-rank branch into the weight it adapts.

    mask * (W + c B A), W   ->   mask * W', W' = W + c B A

`W [out, in], A [rank, in], B [out, rank]`; the product is taken in float64 and rounded once, so outputs stay
up to rounding. Under a quantizer it is taken as the graph takes it, bit for bit: another last digit could
move a code. A branch under a mask leaves every masked entry masked.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.errors import SparsifyError
from sparsify.ir.features.composed import take_out
from sparsify.ir.features.lora import branched_linears
from sparsify.ir.graph import sweep
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear, branched_weight, out_in
from sparsify.tensors.lowrank import delta


@dataclass(frozen=True)
class FoldLora(Pass):
    """Merge every branch."""

    name: ClassVar[str] = "fold-lora"
    moves: ClassVar[Moves] = ROUNDING

    def effect(self) -> Effect:
        """Drops low-rank branches."""
        return effect(needs=["lora"], drops=["lora"])

    def rewrite(self, program: Program, context: Context) -> int:
        """Merge each branch once and take it out of every linear that reads the weight."""
        merged = set()
        for view in branched_linears(program):
            assert view.branch is not None
            if view.weight not in merged:
                weight, new = program.tensor(view.weight), _merged(program, view)
                if not bool(torch.isfinite(new).all()):
                    raise SparsifyError(
                        f"the branch of @{view.weight} holds values that are not finite"
                    )
                with torch.no_grad():
                    weight.copy_(new)
                merged.add(view.weight)
            take_out(program, view, branch=True)
        sweep(program)
        return len(merged)


def _merged(program: Program, view: Linear) -> Tensor:
    """`W + c B A` in the layout the weight is stored in."""
    if view.quantizer is not None:
        return branched_weight(program, view)
    assert view.branch is not None
    weight = program.tensor(view.weight).detach()
    a, b = program.tensor(view.branch.a), program.tensor(view.branch.b)
    change = delta(a, b, view.branch.scale, torch.float64)
    return out_in(view, out_in(view, weight).double() + change).to(weight.dtype)
