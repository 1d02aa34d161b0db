"""prune-channels: remove the channels that masks leave out.

    linear(act(linear(x, U)) * mask, D)   ->   linear(act(linear(x, U[kept])), D[:, kept])

Every tensor of the coupled axis is sliced: rows of what makes a channel (`U [channels, in]`, biases),
columns of what reads it (`D [out, channels]`). Zero at the mask meant removed, so outputs stay up to
rounding.
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.ir.program import Program
from sparsify.select.kinds.catalogue import KINDS


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove masked channels from every weight that carries them."""

    name: ClassVar[str] = "prune-channels"
    moves: ClassVar[Moves] = ROUNDING

    def effect(self) -> Effect:
        """Needs and drops the masks."""
        return effect(needs=["mask.channels"], drops=["mask.channels"], bars=["row-scales"])

    def rewrite(self, program: Program, context: Context) -> int:
        """Slice, drop the masks, record what was kept."""
        return KINDS["channels"].remove(program)
