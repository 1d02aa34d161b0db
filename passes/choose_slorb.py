"""choose-slorb: set SLoRB's branches to the least-squares image of what the masks take away.

    S_ij = 1/k sum over p in block j of (1 - mask_ip) W_ip

`W [out, in], S [out, in / k]`, k inputs a block: among all S this makes `||(1 - mask) W - S X||_F`
smallest, and every block of a row keeps the sum of its weights. Source: AST (2407.20584), section 3.4.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsify.engine.contract import FUNCTION, Context, Effect, Moves, Pass, effect
from sparsify.ir.features.slorb import slorbs
from sparsify.ir.program import Program
from sparsify.ir.views.linear import branched_weight, out_in
from sparsify.tensors.lowrank import block_indicator, block_means


@dataclass(frozen=True)
class ChooseSlorb(Pass):
    """Set S of every branch; X becomes the block indicator again."""

    name: ClassVar[str] = "choose-slorb"
    moves: ClassVar[Moves] = FUNCTION

    def effect(self) -> Effect:
        """Needs the branches, and the masks they make up for."""
        return effect(needs=["slorb", "mask.weights"])

    def rewrite(self, program: Program, context: Context) -> int:
        """Set every branch; returns how many."""
        found = slorbs(program)
        with torch.no_grad():
            for one in found:
                view = one.linear
                assert view.mask is not None
                weight = out_in(view, branched_weight(program, view))
                kept = out_in(view, program.tensor(view.mask))
                x, s = program.tensor(one.a), program.tensor(one.b)
                blocks, inputs = x.shape
                k = inputs // blocks
                x.copy_(block_indicator(inputs, k))
                s.copy_(block_means(weight * ~kept, k))
        return len(found)
