"""insert-lora: a low-rank branch beside a weight, under its mask where there is one.

    linear(x, W)             ->  linear(x, W + c B A)
    linear(x, mask * W)      ->  linear(x, mask * (W + c B A))

`W [out, in], A [rank, in], B [out, rank], c = alpha / rank`; each expert has its own, `[experts, ...]`. B
starts at zero, so outputs stay bitwise. Only under the mask can the branch be folded later without losing a
zero (LoSA, 2502.14816, section 3).
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.engine.contract import NOTHING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.features.lora import add_branch
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import lora
from sparsify.ir.views.linear import Linear, out_in
from sparsify.ir.views.targets import refuse_shared, targeted
from sparsify.tensors.lowrank import initial, seed_of


@dataclass(frozen=True)
class InsertLora(Pass):
    """Add a trainable branch of a rank to every targeted weight."""

    name: ClassVar[str] = "insert-lora"
    moves: ClassVar[Moves] = NOTHING
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Adds low-rank branches."""
        return effect(adds=["lora"], bars=["omission"])

    def check(self, program: Program) -> None:
        """The rank must be smaller than every targeted weight, and linears alone may read it."""
        views = targeted(program, self.targets, self.ignore, experts=True)
        refuse_shared(program, views)
        for view in views:
            smallest = min(program.tensor(view.weight).shape[-2:])
            if not 1 <= self.rank < smallest:
                raise OptionError(
                    f"rank={self.rank} does not fit @{view.weight}; it must be 1 to {smallest - 1}"
                )

    def rewrite(self, program: Program, context: Context) -> int:
        """Add one branch a weight; A is drawn from the seed and the weight's place in the graph."""
        views: dict[str, Linear] = {}
        for view in targeted(program, self.targets, self.ignore, experts=True):
            views.setdefault(view.weight, view)
        for place, (path, view) in enumerate(views.items()):
            weight = program.tensor(path)
            *experts, outputs, inputs = out_in(view, weight).shape
            seed = seed_of(context.seed, place)
            a, b = initial(
                outputs, inputs, self.rank, seed=seed, dtype=weight.dtype, experts=experts
            )
            device = weight.device
            pairs = dict(zip(lora(path), (a.to(device), b.to(device)), strict=True))
            add_branch(program, path, pairs, self.alpha / self.rank, transposed=view.transposed)
        return len(views)
