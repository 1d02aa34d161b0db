"""choose-neighbours: fill the store behind the head from data, and choose how much it counts.

    K_j <- x_j,  V_j <- what followed x_j, for the tokens (or sequences) of data in an order drawn by the seed
    c, tau <- argmin of - mean log((1 - c) p(y) + c r(y)) on others, tau from a grid of halves

x_j is what enters the head of the program itself, which asks with the same later. What followed is the next
token or the label (`by=data`), or what the dense twin says, its most probable class or all probabilities as
the store has it (`by=dense`): that is the program before the first pass, or `Context(dense=...)`, a larger
model of the same tokenizer. A tenth of the sequences, up to 1024 rows, chooses what is not given and
goes into no store. The text of the graph stays.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from sparsify.data.sequences import Data, order
from sparsify.engine.contract import FUNCTION, Context, Effect, Moves, Pass, effect
from sparsify.errors import DataError, OptionError
from sparsify.ir.features.neighbours import fill, neighbours
from sparsify.ir.program import Program
from sparsify.select.neighbours import Labels, Reader, choose
from sparsify.train.losses import check_labels

_HELD = 1024
_PART = 10


@dataclass(frozen=True)
class ChooseNeighbours(Pass):
    """Fill the store and set the share c and the temperature tau; none of either is chosen on data.

    Programs run on `batch` sequences at a time.
    """

    name: ClassVar[str] = "choose-neighbours"
    moves: ClassVar[Moves] = FUNCTION
    by: Literal["data", "dense"] = "data"
    share: float | None = None
    temperature: float | None = None
    batch: int = 8

    def effect(self) -> Effect:
        """Needs the store, data, and the dense twin where that speaks."""
        wants = ["data", *(["dense"] if self.by == "dense" else [])]
        return effect(needs=["neighbours"], wants=wants)

    def check(self, program: Program) -> None:
        """Numbers must be in range."""
        if self.batch < 1:
            raise OptionError(f"batch={self.batch} must be at least 1")
        if self.share is not None and not 0 <= self.share <= 1:
            raise OptionError(f"share={self.share} is a part of the probability, from 0 to 1")
        if self.temperature is not None and self.temperature <= 0:
            raise OptionError(f"temperature={self.temperature} must be positive")

    def check_data(self, program: Program, data: Data) -> None:
        """Labels must be classes that the program has logits for."""
        if self.by == "data":
            instead = "a store holds what the program says; take by=dense"
            check_labels(program, data, instead)
            Labels(program)(data.batch([0]))

    def rewrite(self, program: Program, context: Context) -> int:
        """Fill the store; returns the number of its rows."""
        assert context.data is not None
        (found,) = neighbours(program)
        size = len(program.tensor(found.keys))
        reader = Reader(program, found, context.dense if self.by == "dense" else None)
        data, indices = context.data, order(len(context.data), context.seed, 0).tolist()
        apart = self.share is None or self.temperature is None
        held: list[int] = []
        if apart:
            held, _ = reader.enough(data, indices[: max(1, len(indices) // _PART)], _HELD)
        taken, rows = reader.enough(data, indices[len(held) :], size)
        if rows < size:
            raise DataError(
                f"the data has {rows} rows for a store of {size}; bring more, or take "
                f"insert-neighbours{{size={rows}}}"
            )
        store = reader.read(data, taken, size, self.batch)
        share, temperature = self.share, self.temperature
        if apart:
            others = reader.read(data, held, _HELD, self.batch, logits=True)
            if not len(others):
                raise DataError("no row is left to choose on; give share and temperature")
            best = choose(found, store, others, share, temperature)
            share, temperature = best.share, best.temperature
            context.notes.append(
                f"{best.alone:.3f} nats on {len(others)} rows alone, {best.with_store:.3f} with the store"
            )
        assert share is not None
        assert temperature is not None
        context.notes.append(f"share {share:.3f}, temperature {temperature:.3g}")
        fill(program, found, store.states, store.values, share, temperature)
        return size
