"""fold-prompt: a prompt becomes the keys and values that it comes to, before those of every sequence.

    attention(q [.., p + length, ..], k, v, mask)
      ->  attention(q [.., length, ..], cat(K, k), cat(V, v), mask[.., p:, :])

`K, V [1, heads, p, size]` for each attention: what the places of the prompt give there, positions included.
That holds where attention is causal, so that a prompt sees itself alone. P goes; no layer computes its places
any more. Outputs stay up to rounding. The decode variant has K and V before its caches. Source: Li and Liang
2021 (prefix-tuning, 2101.00190), section 4, for what a prefix of keys and values is.
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError, reason_of
from sparsify.ir.facts.causal import masks_bar_future
from sparsify.ir.features.prefix import fold_prompt
from sparsify.ir.features.prompt import prompts
from sparsify.ir.program import Program


@dataclass(frozen=True)
class FoldPrompt(Pass):
    """Fold the prompt."""

    name: ClassVar[str] = "fold-prompt"
    moves: ClassVar[Moves] = ROUNDING

    def effect(self) -> Effect:
        """Needs the prompt, switched on; heads that go go first, and a store comes behind."""
        return effect(
            needs=["prompt", "prompted"],
            drops=["prompt", "prompted"],
            sets=["prefix"],
            bars=["packed", "omission", "mask.heads", "neighbours"],
        )

    def rewrite(self, program: Program, context: Context) -> int:
        """Fold it; returns the number of attentions."""
        if not masks_bar_future(program):
            raise OptionError(
                "not every attention is one node with a mask that bars what follows (some models spell "
                "scores out), so that the keys of the prompt may be others for each sequence; leave it "
                "unfolded"
            )
        (found,) = prompts(program)
        count = fold_prompt(program, found)
        program.module.recompile()
        try:
            program.run()
        except Exception as error:
            raise OptionError(
                f"the program does not run without the places of the prompt ({reason_of(error)[:200]}); "
                "leave it unfolded"
            ) from error
        return count
