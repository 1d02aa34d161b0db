"""insert-neighbours: a store of keys and values behind the head, asked by what enters the head.

    linear(x, W)  ->  log((1 - c) softmax(linear(x, W)) + c sum_j w_j V_j)
    w = softmax(s / tau) over the k rows of largest s;  s_j = q . K_j, q = x / |x| where it is a cosine

`W [C, d], x [..., d], K [N, d], V [N]` (numbers of classes) or `[N, C]` (probabilities of classes), `c []`,
`tau []`. c is 0 at first and the logits go out as they are, bitwise; `choose-neighbours` fills the store and
sets c and tau. Logits stay logits: those of the mixed probabilities. The formula is our own, plain kNN
mixing as in Khandelwal et al. 2020 (kNN-LM, 1911.00172), equations 2 and 3, with a cosine or a product
where that has a distance. RetriKT (2310.15594) retrieves too; its paper's head is not this one.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from sparsify.engine.contract import NOTHING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.features.neighbours import Place, add_neighbours, head_of, neighbours, store_bytes
from sparsify.ir.program import Program

_MEGABYTE = 1e6
_ID_BYTES = 8


@dataclass(frozen=True)
class InsertNeighbours(Pass):
    """Put a store of `size` rows behind the head; `k` of them answer.

    `values=ids` stores the number of one class a row, a token say, `dense` a probability for every class. A
    store of more than `limit` megabytes is refused.
    """

    name: ClassVar[str] = "insert-neighbours"
    moves: ClassVar[Moves] = NOTHING
    size: int = 4096
    k: int = 8
    similarity: Literal["cosine", "dot"] = "cosine"
    values: Literal["ids", "dense"] = "ids"
    limit: float = 256.0

    def effect(self) -> Effect:
        """Adds the store; keys are of the states as they are, so that masks of their width come off first."""
        return effect(adds=["neighbours"], bars=["mask.hidden", "packed"])

    def check(self, program: Program) -> None:
        """There must be a head, rows enough for the neighbours, and bytes for the rows."""
        place = head_of(program)
        if not 1 <= self.k <= self.size:
            raise OptionError(f"k={self.k} is not from 1 to size={self.size}")
        taken = self._bytes(program, place) / _MEGABYTE
        if taken > self.limit:
            raise OptionError(
                f"a store of {self.size} rows would take {taken:,.1f} MB, more than limit={self.limit:g}; "
                "take a smaller size, values=ids, or a higher limit"
            )

    def rewrite(self, program: Program, context: Context) -> int:
        """Insert the store; returns 1."""
        place = head_of(program)
        weight = program.tensor(place.head.weight)
        keys = weight.new_zeros(self.size, place.width)
        dense = weight.new_zeros(self.size, place.classes)
        ids = torch.zeros(self.size, dtype=torch.long, device=weight.device)
        values = dense if self.values == "dense" else ids
        tensors = (keys.detach(), values.detach(), weight.new_zeros(()), weight.new_ones(()))
        add_neighbours(program, place, tensors, self.k, self.similarity == "cosine")
        (found,) = neighbours(program)
        taken = store_bytes(program, found) / _MEGABYTE
        context.notes.append(f"a store of {self.size} rows takes {taken:,.2f} MB")
        return 1

    def _bytes(self, program: Program, place: Place) -> int:
        each = program.tensor(place.head.weight).element_size()
        row = place.classes * each if self.values == "dense" else _ID_BYTES
        return self.size * (place.width * each + row)
