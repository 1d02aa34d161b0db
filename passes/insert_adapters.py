"""insert-adapters: a low-rank branch beside a weight, which is never folded into it.

    linear(x, W)  ->  linear(x, W) + linear(linear(x, A), B)

`W [out, in], A [rank, in], B [out, rank]`, `rank = ratio min(out, in)` rounded down, then up to a `multiple`.
A is drawn, B zero, so outputs stay; `choose-adapters` sets both. Other than a branch under the mask
(insert-lora) it may give a masked entry a value: it stays at export, as two small linears beside the packed
one, and reads the input before that is rounded. Source: SLiM (2410.09615), SLiM-LoRA.
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.engine.contract import NOTHING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.features.beside import add_beside
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import adapter
from sparsify.ir.views.linear import Linear, out_in
from sparsify.ir.views.stacks import left_whole
from sparsify.ir.views.targets import refuse_shared, targeted
from sparsify.tensors.lowrank import initial, seed_of


@dataclass(frozen=True)
class InsertAdapters(Pass):
    """Add a branch of a rank relative to the weight beside every targeted linear."""

    name: ClassVar[str] = "insert-adapters"
    moves: ClassVar[Moves] = NOTHING
    ratio: float = 0.1
    multiple: int = 1
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Adds the branches; they could not follow sites of which a step omits a part."""
        return effect(adds=["adapters"], bars=["omission"])

    def check(self, program: Program) -> None:
        """The ratio must give a rank, and linears alone may read the weights."""
        if not 0 < self.ratio <= 1:
            raise OptionError(f"ratio={self.ratio} is not a part of the smaller side, as in 0.1")
        if self.multiple < 1:
            raise OptionError(f"multiple={self.multiple} must be at least 1")
        refuse_shared(
            program,
            targeted(program, self.targets, self.ignore),
            "an adapter would serve only one of its uses",
        )

    def rewrite(self, program: Program, context: Context) -> int:
        """Add one branch a weight, beside each of its uses; returns how many."""
        context.notes.extend(left_whole(program, experts=True))
        uses: dict[str, list[Linear]] = {}
        for view in targeted(program, self.targets, self.ignore):
            uses.setdefault(view.weight, []).append(view)
        for place, (path, found) in enumerate(uses.items()):
            weight = program.tensor(path)
            outputs, inputs = out_in(found[0], weight).shape
            rank = self._rank(min(outputs, inputs))
            seed = seed_of(context.seed, place)
            a, b = initial(outputs, inputs, rank, seed=seed, dtype=weight.dtype)
            pair = dict(zip(adapter(path), (a.to(weight), b.to(weight)), strict=True))
            add_beside(program, found, pair)
        return len(uses)

    def _rank(self, smallest: int) -> int:
        rank = max(1, int(self.ratio * smallest))
        return min(smallest, -(-rank // self.multiple) * self.multiple)
