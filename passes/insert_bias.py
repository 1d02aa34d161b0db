"""insert-bias: a bias behind the linears that masks take inputs or weights from.

    linear(x, W)  ->  linear(x, W) + b

`W [out, in], b [out]`. b starts at zero, so outputs stay; `choose-bias` sets it to what the removed weights
gave on average, and `fold-bias` makes it the linear's own, where there was none as well. Source: FLAP
(2312.11983), section 3.4.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from sparsify.engine.contract import NOTHING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.features.bias import add_bias, refuse_unbiasable
from sparsify.ir.features.group_mask import group_masks
from sparsify.ir.features.weight_mask import masked_linears
from sparsify.ir.program import Program
from sparsify.ir.views.linear import linears
from sparsify.ir.views.stacks import left_whole
from sparsify.ir.views.targets import targeted
from sparsify.select.weights import NO_MASK


@dataclass(frozen=True)
class InsertBias(Pass):
    """Add a bias behind every targeted linear that carries a mask of the kinds in `of`."""

    name: ClassVar[str] = "insert-bias"
    moves: ClassVar[Moves] = NOTHING
    of: tuple[Literal["weights", "channels", "heads"], ...] = ("heads", "channels")
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Needs the masks that it makes up for."""
        return effect(needs=[f"mask.{kind}" for kind in self.of], adds=["bias"])

    def check(self, program: Program) -> None:
        """Globs must match."""
        targeted(program, self.targets, self.ignore)

    def rewrite(self, program: Program, context: Context) -> int:
        """Add every bias; returns how many."""
        context.notes.extend(left_whole(program, experts=True))
        chosen = {view.weight for view in targeted(program, self.targets, self.ignore)}
        masked = {m.linear.weight for m in group_masks(program) if m.kind in self.of}
        if "weights" in self.of:
            masked |= {view.weight for view in masked_linears(program)}
        views = [view for view in linears(program) if view.weight in chosen & masked]
        if not views:
            raise OptionError(NO_MASK)
        refuse_unbiasable(program, views)
        for view in views:
            add_bias(program, view)
        return len(views)
