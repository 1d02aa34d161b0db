"""insert-prompt: a soft prompt, trainable rows that stand before the embeddings of every sequence.

    f(embedding(ids), mask, positions)
      ->  f(cat(P, embedding(ids)), cat(s, mask), cat(0 .. p - 1, positions + p s))[:, p:]

`P [p, d]`, s 0 or 1, one for all; ids `[batch, length]`. Sizes in the graph follow its inputs, and outputs
keep their shape. s is 0 at first: the mask hides the prompt, positions are counted without it, and outputs
stay, up to the rounding of sums over p more keys that weigh nothing. `choose-prompt` sets s to 1,
`train{update=prompt}` teaches P alone. Source: Lester et al. 2021 (2104.08691), section 2; rows of drawn words
as they begin with are theirs too (section 3.2).
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.facts.admission import admission_of_program
from sparsify.ir.features.prompt import add_prompt, table_of
from sparsify.ir.program import Program
from sparsify.select.prompts import Init, drawn_rows


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
        positions = admission_of_program(program).positions
        if positions is not None and self.tokens >= positions:
            raise OptionError(
                f"tokens={self.tokens} leaves none of the {positions} positions of the model to a sequence"
            )

    def rewrite(self, program: Program, context: Context) -> int:
        """Insert the prompt; returns 1."""
        table = table_of(program)
        add_prompt(program, drawn_rows(program, table, self.tokens, self.init, context.generator()))
        return 1
