"""allocate-ranks: give each layer's branches a rank by how far its output is from the dense model's.

    r_i = round(mean L_i / mean(L)),   L_i the error of layer i,   sum_i r_i = mean layers

A rank that grows gets rows of A drawn anew and zeros in B; of one that shrinks what goes is added to the
weight first: `W + c B A` stays, up to rounding. `A [rank, in], B [out, rank]` have the rank they use. The
scale c stays, and so does the text of the graph. Source: LoSA (2502.14816), section 3.3.
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.data.sequences import sample
from sparsify.data.shares import own_batches
from sparsify.engine.contract import FUNCTION, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.features.lora import branched_linears, resize_branch
from sparsify.ir.program import Program
from sparsify.ir.types import propagate
from sparsify.select.layers import layer_errors, layers_of
from sparsify.tensors.allocation import ranks


@dataclass(frozen=True)
class AllocateRanks(Pass):
    """Resize the branches to ranks with an exact mean; none above `largest`."""

    name: ClassVar[str] = "allocate-ranks"
    moves: ClassVar[Moves] = FUNCTION
    mean: int = 8
    largest: int = 16
    samples: int = 128
    batch: int = 8

    def effect(self) -> Effect:
        """Needs branches, data, and the dense twin to compare with."""
        return effect(needs=["lora"], wants=["data", "dense"])

    def check(self, program: Program) -> None:
        """The mean must lie between 1 and the largest."""
        if not 1 <= self.mean <= self.largest:
            raise OptionError(f"mean={self.mean} must be from 1 to largest={self.largest}")

    def rewrite(self, program: Program, context: Context) -> int:
        """Measure the layers and resize; returns how many branches changed."""
        assert context.data is not None
        assert context.dense is not None
        views = branched_linears(program)
        for view in views:
            if self.largest >= min(program.tensor(view.weight).shape[-2:]):
                raise OptionError(f"largest={self.largest} does not fit @{view.weight}")
        layers = layers_of(program, views)
        chosen = sample(context.data, self.samples, context.seed)
        parts = own_batches(context.data, chosen, self.batch)
        errors = layer_errors(program, context.dense, layers, parts)
        found = ranks(errors, self.mean, self.largest)
        generator, changed = context.generator(), 0
        for layer, rank in zip(layers, found, strict=True):
            for view in layer.views:
                changed += resize_branch(program, view, rank, generator)
        propagate(program)
        context.notes.append("ranks: " + " ".join(map(str, found)))
        return changed
