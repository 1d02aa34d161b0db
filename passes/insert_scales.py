"""insert-scales: learnable scales for blocks of the rows of a weight.

    linear(x, mask * W)  ->  linear(x, S * mask * W),  (S * W)_ij = S_ib W_ij, b the block of column j

`W [out, in], S [out, blocks]`, every row in `blocks` equal parts. S starts at one, so outputs stay bitwise;
`train` moves it and `fold-scales` multiplies it in. It makes up for the size that weights lose while they are
pulled to zero. Source: CAST (2509.25996), equations 11 and 12.
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.engine.contract import NOTHING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.features.row_scales import add_row_scales
from sparsify.ir.program import Program
from sparsify.ir.views.linear import out_in
from sparsify.ir.views.targets import refuse_shared, targeted


@dataclass(frozen=True)
class InsertScales(Pass):
    """Scale `blocks` equal parts of every row of every targeted weight."""

    name: ClassVar[str] = "insert-scales"
    moves: ClassVar[Moves] = NOTHING
    blocks: int = 2
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Adds scales of rows; heads and channels must be gone before, as removing them would move blocks."""
        return effect(adds=["row-scales"], bars=["mask.channels", "mask.heads", "omission"])

    def check(self, program: Program) -> None:
        """The blocks must divide the inputs, and linears alone may read the weights."""
        views = targeted(program, self.targets, self.ignore, experts=True)
        refuse_shared(program, views, "scales could not be folded")
        for view in views:
            inputs = out_in(view, program.tensor(view.weight)).shape[-1]
            if self.blocks < 1 or inputs % self.blocks:
                raise OptionError(
                    f"blocks={self.blocks} does not divide the {inputs} inputs of @{view.weight}"
                )

    def rewrite(self, program: Program, context: Context) -> int:
        """Insert every scale; returns how many weights have them."""
        views = targeted(program, self.targets, self.ignore, experts=True)
        for view in views:
            add_row_scales(program, view, self.blocks)
        return len({view.weight for view in views})
