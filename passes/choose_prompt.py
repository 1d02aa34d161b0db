"""choose-prompt: switch the prompt on, as it stands or as the best of several draws.

    s <- 1
    P <- argmin over `tries` prompts of the task loss on `samples` sequences

The first try is the prompt that is there, each other one rows of words that are drawn. The text of the graph
stays.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsify.data.sequences import Data, sample
from sparsify.engine.contract import FUNCTION, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.features.prompt import prompts
from sparsify.ir.program import Program
from sparsify.ir.views.embedding import table_at
from sparsify.select.prompts import drawn_rows, loss_of
from sparsify.train.losses import check_labels


@dataclass(frozen=True)
class ChoosePrompt(Pass):
    """Switch the prompt on; of more `tries` than one the best on `samples` sequences, `batch` at a time."""

    name: ClassVar[str] = "choose-prompt"
    moves: ClassVar[Moves] = FUNCTION
    tries: int = 1
    samples: int = 64
    batch: int = 8

    def effect(self) -> Effect:
        """Needs the prompt, and data where there is a choice; says that it is on."""
        wants = ["data"] if self.tries > 1 else []
        return effect(needs=["prompt"], sets=["prompted"], wants=wants, bars=["packed"])

    def check(self, program: Program) -> None:
        """Positive numbers."""
        if min(self.tries, self.samples, self.batch) < 1:
            raise OptionError("tries, samples and batch must be at least 1")

    def check_data(self, program: Program, data: Data) -> None:
        """Tries are told apart by the loss of labels."""
        check_labels(program, data, "take tries=1")

    @torch.no_grad()
    def rewrite(self, program: Program, context: Context) -> int:
        """Switch it on; returns 1."""
        (found,) = prompts(program)
        rows = program.tensor(found.rows)
        program.tensor(found.switch).fill_(1)
        if self.tries == 1:
            return 1
        assert context.data is not None
        indices, draw = sample(context.data, self.samples, context.seed), context.generator()
        tried, table = [rows.clone()], table_at(found.embedded)
        assert table is not None
        for _ in range(self.tries - 1):
            tried.append(drawn_rows(program, table, len(rows), "words", draw))
        losses = []
        context.progress.start(self.name, self.tries)
        for one in tried:
            rows.copy_(one)
            losses.append(loss_of(program, context.data, indices, self.batch))
            context.progress.advance(loss=losses[-1])
        best = min(range(self.tries), key=losses.__getitem__)
        rows.copy_(tried[best])
        context.notes.append(
            f"the best of {self.tries} has {losses[best]:.3f} nats, the first {losses[0]:.3f}"
        )
        return 1
