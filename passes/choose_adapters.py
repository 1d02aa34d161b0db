"""choose-adapters: set the branches beside weights to the low-rank form of what the weights have lost.

    E = W_dense - Q(mask * W),   B A <- argmin ||(E - B A) D||_F

`W [out, in], A [rank, in], B [out, rank]`. `slim`: D is diagonal and holds the root mean square of each
input; `naive`: D = 1, a plain singular value decomposition; `gram`: D D^T is the whole Gram matrix of the
input, so that what is lost of the output is smallest. All three are closed forms. With `absorb` the stored
weight becomes `W_dense - B A` afterwards: where the mask keeps it, only rounding is lost any more. W_dense is
that of the dense model, whatever has moved or rounded W since. The text of the graph stays. Source: SLiM
(2410.09615), SLiM-LoRA; `absorb` is in its code alone.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sparsify.engine.contract import FUNCTION, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError, SparsifyError
from sparsify.ir.features.beside import Beside, branches_beside
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import adapter
from sparsify.ir.views.linear import effective_weight, out_in
from sparsify.select.dense_twin import Dense
from sparsify.select.statistics import statistics_of
from sparsify.select.weights import store_weight
from sparsify.tensors.lowrank import best_rank, best_rank_by_gram, best_rank_by_saliency, saliency


@dataclass(frozen=True)
class ChooseAdapters(Pass):
    """Set A and B of every branch that `insert-adapters` has put beside a weight."""

    name: ClassVar[str] = "choose-adapters"
    moves: ClassVar[Moves] = FUNCTION
    by: Literal["slim", "naive", "gram"] = "slim"
    absorb: bool = False

    def effect(self) -> Effect:
        """Needs the branches, the dense twin, and statistics of inputs unless it is `naive`."""
        seen = [] if self.by == "naive" else ["stats"]
        # What is summed or scaled under the mask would have to be taken out of W again.
        bars = ["lora", "row-scales"] if self.absorb else []
        return effect(needs=["adapters", *seen], wants=["dense"], bars=bars)

    def rewrite(self, program: Program, context: Context) -> int:
        """Set every branch; returns how many."""
        assert context.dense is not None
        found, dense = branches_beside(program, adapter), Dense(program, context.dense)
        if not found:
            raise OptionError("every weight with an adapter is packed; put choose-adapters before")
        context.progress.start(self.name, len(found))
        lost, left = 0.0, 0.0
        for one in found:
            view = one.linear
            wanted = dense.weight(view)
            error = wanted - out_in(view, effective_weight(program, view))
            a, b = self._factors(program, one, error)
            with torch.no_grad():
                program.tensor(one.a).copy_(a)
                program.tensor(one.b).copy_(b)
            if self.absorb:
                store_weight(program, view, wanted - b @ a)
            error_after = wanted - out_in(view, effective_weight(program, view)) - b @ a
            lost, left = lost + float(error.norm()), left + float(error_after.norm())
            context.progress.advance()
        context.notes.append(f"of what the weights had lost {left / max(lost, 1e-30):.0%} is left")
        return len(found)

    def _factors(self, program: Program, one: Beside, error: Tensor) -> tuple[Tensor, Tensor]:
        """`A [rank, in]` and `B [out, rank]` for an error `[out, in]`."""
        view, rank = one.linear, program.tensor(one.a).shape[0]
        try:
            if self.by == "naive":
                return best_rank(error, rank)
            seen = statistics_of(program, view)
            if self.by == "slim":
                return best_rank_by_saliency(error, saliency(seen.square, seen.tokens), rank)
            if seen.gram is None:
                raise OptionError("by=gram needs insert-probes{gram=true}")
            return best_rank_by_gram(error, seen.gram, rank)
        except SparsifyError as cause:
            raise type(cause)(f"@{view.weight}: {cause}") from cause
