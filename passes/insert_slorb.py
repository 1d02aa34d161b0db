"""insert-slorb: a low-rank branch beside a masked weight, over sums of neighbouring inputs (SLoRB).

    linear(x, mask * W)  ->  linear(x, mask * W) + linear(linear(x, X), S)
    X_ij = 1 where i k <= j < (i + 1) k, else 0

`W [out, in], X [in / k, in], S [out, in / k]`. S starts at zero, so outputs stay; `choose-slorb` sets it.
Unlike a branch under the mask it cannot be folded: it stays at export, as two small linears. Source: AST
(2407.20584), section 3.4.
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.engine.contract import NOTHING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.features.slorb import add_slorb
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear, out_in
from sparsify.ir.views.stacks import left_whole
from sparsify.ir.views.targets import refuse_shared, targeted


@dataclass(frozen=True)
class InsertSlorb(Pass):
    """Add a branch over sums of `k` inputs to every targeted weight that has a mask."""

    name: ClassVar[str] = "insert-slorb"
    moves: ClassVar[Moves] = NOTHING
    k: int = 16
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Needs masks on weights, adds the branches."""
        return effect(needs=["mask.weights"], adds=["slorb"])

    def check(self, program: Program) -> None:
        """K must divide the inputs of every targeted weight, and linears alone may read it."""
        views = targeted(program, self.targets, self.ignore)
        refuse_shared(program, views)
        for view in views:
            inputs = out_in(view, program.tensor(view.weight)).shape[1]
            if self.k < 1 or inputs % self.k:
                raise OptionError(
                    f"k={self.k} does not divide the {inputs} inputs of @{view.weight}"
                )

    def rewrite(self, program: Program, context: Context) -> int:
        """Add every branch; returns to how many weights."""
        context.notes.extend(left_whole(program, experts=True))
        views: dict[str, list[Linear]] = {}
        for view in targeted(program, self.targets, self.ignore):
            if view.mask is not None:
                views.setdefault(view.weight, []).append(view)
        if not views:
            raise OptionError("no target has a mask; widen the targets, or those of insert-masks")
        for found in views.values():
            add_slorb(program, found, self.k)
        return len(views)
