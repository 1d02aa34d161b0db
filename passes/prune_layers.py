"""prune-layers: remove the layers or residual blocks that masks leave out.

    where(mask, y, x)   ->   x where the mask is false, y where it is true
    a + t * mask        ->   a where the mask is false, a + t where it is true

`x` is the stream that the layer starts from. Weights that nobody reads any more are deleted. Outputs
stay up to rounding.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.ir.program import Program
from sparsify.select.kinds.catalogue import KINDS


@dataclass(frozen=True)
class PruneLayers(Pass):
    """Remove masked layers, or with `of=blocks` masked attention and feed-forward blocks."""

    name: ClassVar[str] = "prune-layers"
    moves: ClassVar[Moves] = ROUNDING
    of: Literal["layers", "blocks"] = "layers"

    def effect(self) -> Effect:
        """Needs and drops the masks; the masks of layers stand on blocks."""
        feature = f"mask.{self.of}"
        bars = ["mask.layers"] if self.of == "blocks" else []
        return effect(needs=[feature], drops=[feature], bars=bars)

    def rewrite(self, program: Program, context: Context) -> int:
        """Remove, drop the other masks, record what went; returns how many masks there were."""
        return KINDS[self.of].remove(program)
