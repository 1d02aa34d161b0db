"""insert-experts: small experts behind every feed-forward block, an identity until they learn (PESC).

    y = u + scale sum_i g_i B_i gelu(A_i u),   u = FFN(x),   g = the top of softmax(R x) over their sum

`A_i [rank, d], B_i [d, rank], R [experts, d]`; no biases. A and R are drawn (Kaiming's uniform rule with
a = sqrt(5)), B is zero, so outputs stay bitwise. The router reads what enters the block. A feed-forward block
is what the axes of the program say it is: linears that make channels of one value, and the one linear that
reads them. `train{update=experts balance=0.01}` teaches them. Source: Wu et al. 2024 (PESC, 2401.02731),
section 3.
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.engine.contract import NOTHING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.axes.feed_forward import FeedForward, feed_forwards
from sparsify.ir.features.experts import Form, Tensors, add_experts
from sparsify.ir.program import Program
from sparsify.ir.views.linear import out_in
from sparsify.ir.views.targets import targeted
from sparsify.tensors.lowrank import initial, seed_of


@dataclass(frozen=True)
class InsertExperts(Pass):
    """Put `experts` adapters of a rank behind each block, `top` of which serve a token.

    Targets are the last linears of the blocks. The paper takes rank=512 and scale=0.25 for models of 7 to 34
    billion parameters, its released training code rank=64 and scale=1.
    """

    name: ClassVar[str] = "insert-experts"
    moves: ClassVar[Moves] = NOTHING
    experts: int = 8
    top: int = 2
    rank: int = 64
    scale: float = 1.0
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Adds the experts; sites of which a step omits a part would not have them."""
        return effect(adds=["experts"], bars=["omission"])

    def check(self, program: Program) -> None:
        """Numbers must be such that a token has experts, and there must be blocks to put them behind."""
        if not 1 <= self.top <= self.experts:
            raise OptionError(f"top={self.top} is not from 1 to experts={self.experts}")
        if self.rank < 1:
            raise OptionError(f"rank={self.rank} makes no branch; it must be at least 1")
        if not self.scale:
            raise OptionError("scale=0.0 would leave the experts out; the paper takes 0.25")
        self._blocks(program)

    def rewrite(self, program: Program, context: Context) -> int:
        """Insert the experts behind every block; returns behind how many."""
        found = self._blocks(program)
        for place, block in enumerate(found):
            width = out_in(block.last, program.tensor(block.last.weight)).shape[0]
            entering = out_in(block.first, program.tensor(block.first.weight)).shape[1]
            weight = program.tensor(block.last.weight)
            one, other = (seed_of(context.seed, 2 * place + i) for i in range(2))
            a, b = initial(width, width, self.experts * self.rank, seed=one)
            router, _ = initial(1, entering, self.experts, seed=other)
            form = Form(
                self.experts,
                self.top,
                block.first.weight,
                scale=self.scale,
                activation="gelu",
                reads="output",
            )
            tensors = Tensors(router.to(weight), a.to(weight), b.to(weight))
            add_experts(program, [block.last], form, tensors)
        return len(found)

    def _blocks(self, program: Program) -> list[FeedForward]:
        chosen = {view.weight for view in targeted(program, self.targets, self.ignore)}
        every = feed_forwards(program)
        found = [block for block in every if block.last.weight in chosen]
        if not found:
            raise OptionError(
                "no target ends a feed-forward block; "
                + (
                    f"one that does is @{every[0].last.weight}"
                    if every
                    else "`sparsify-fx show MODEL --axes` lists the channels of the program"
                )
            )
        return found
