"""insert-prompt: a soft prompt, trainable rows that stand before the embeddings of every sequence.

    f(embedding(ids), mask, positions)
      ->  f(cat(P, embedding(ids)), cat(s, mask), cat(0 .. p - 1, positions + p s))[:, p:]

`P [p, d]`, s 0 or 1, one for all; ids `[batch, length]`. Sizes in the graph follow its inputs, and outputs
keep their shape. s is 0 at first: the mask hides the prompt, positions are counted without it, and outputs
stay, up to the rounding of sums over p more keys that weigh nothing. `choose-prompt` sets s to 1,
`train{update=prompt}` teaches P alone. Source: Lester et al. 2021 (2104.08691), sections 2 and 3.2 (rows
of drawn words to begin with).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.facts.admission import admission_of_program
from sparsify.ir.features.prompt import IDS, add_prompt, table_of
from sparsify.ir.program import Program
from sparsify.select.prompts import Init, drawn_rows
from sparsify.tensors.precision import relative_difference

# Another position moves outputs by far more, rounding by far less.
_FELT = 1e-3


@dataclass(frozen=True)
class InsertPrompt(Pass):
    """Put a prompt of `tokens` places before every sequence, switched off.

    `init=words` begins with rows of words that are drawn, `normal` with numbers of their mean and deviation.
    """

    name: ClassVar[str] = "insert-prompt"
    moves: ClassVar[Moves] = ROUNDING
    tokens: int = 8
    init: Init = "words"

    def effect(self) -> Effect:
        """Adds the prompt; what computes with the number of places comes later."""
        return effect(adds=["prompt"], bars=["neighbours", "omission", "packed", "prefix"])

    def tokens_before(self) -> int:
        """As many positions less for each sequence."""
        return self.tokens

    def check(self, program: Program) -> None:
        """There must be a place for it, and positions must be left."""
        if self.tokens < 1:
            raise OptionError(f"tokens={self.tokens} makes no prompt; it must be at least 1")
        table_of(program)
        stated, length = admission_of_program(program), program.sample[IDS].shape[1]
        least = length if stated.fixed else 1
        if stated.positions is not None and stated.positions - self.tokens < least:
            raise OptionError(
                f"tokens={self.tokens} leaves {max(0, stated.positions - self.tokens)} of the model's "
                f"{stated.positions} positions to a sequence, fewer than the {least} it needs"
            )

    def rewrite(self, program: Program, context: Context) -> int:
        """Insert the prompt; returns 1."""
        table, before = table_of(program), program.run()
        rows = drawn_rows(program, table, self.tokens, self.init, context.generator())
        add_prompt(program, rows)
        program.module.recompile()
        if any(map(_is_felt, before, program.run())):
            raise OptionError(
                "a prompt that is hidden is felt all the same: the program counts positions or places by "
                "itself; bring a model that takes position_ids or counts them by its attention mask"
            )
        return 1


def _is_felt(before: Tensor, after: Tensor) -> bool:
    return relative_difference(before, after) > _FELT
