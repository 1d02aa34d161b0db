"""calibrate: run data through the program and fill its probes.

    statistics <- moments over the tokens of `samples` sequences

Statistics start from zero each time; padded tokens are left out. The graph and the weights stay. Ranks share
the sequences out, batch by batch, and add up what they have seen.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsify import ranks
from sparsify.data.sequences import sample
from sparsify.data.shares import own_batches
from sparsify.engine.contract import FUNCTION, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.mode import evaluating
from sparsify.ir.program import Program
from sparsify.ir.views.probe import probes
from sparsify.select.collector import Collector


@dataclass(frozen=True)
class Calibrate(Pass):
    """Fill the probes from `samples` sequences, `batch` at a time."""

    name: ClassVar[str] = "calibrate"
    moves: ClassVar[Moves] = FUNCTION
    samples: int = 128
    batch: int = 8

    def effect(self) -> Effect:
        """Needs probes and data; sets statistics."""
        return effect(needs=["probe"], sets=["stats"], wants=["data"])

    def check(self, program: Program) -> None:
        """Positive sizes."""
        if self.samples < 1 or self.batch < 1:
            raise OptionError(f"samples={self.samples} and batch={self.batch} must be at least 1")

    def rewrite(self, program: Program, context: Context) -> int:
        """Interpret the program on the chosen sequences; returns the number of probes filled."""
        assert context.data is not None
        chosen = sample(context.data, self.samples, context.seed)
        collector = Collector(program)
        collector.reset()
        context.progress.start(self.name, len(ranks.own(range(0, len(chosen), self.batch))))
        with evaluating(program.module), torch.no_grad():
            for part in own_batches(context.data, chosen, self.batch):
                collector.collect(part)
                context.progress.advance()
        collector.add_up()
        return len(list(probes(program)))
