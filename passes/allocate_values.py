"""allocate-values: int8 where int4 would cost most; `insert-quantizers{values=allocated}` follows it.

    minimise sum_i C_i   so that   sum_i bytes_i <= bytes sum_i n_i
    C_i = sum_ok F_ok (W_ok - Q(W)_ok)^2 / 2,   F_ok = mean_s (dL_s / dW_ok)^2

`W [out, in]` of n_i weights, zeros of masks included; Q rounds with `absmax` scales, L_s is the task loss of
one sample, so that C is the second order of what rounding costs (the diagonal empirical Fisher information,
as in SqueezeLLM, 2306.07629, section 4.1, there for the codes of one weight). Bytes are those of pack-nm,
for a weight without the zeros of `pattern` those of pack-dense, scales included. int8 goes where it saves
most for its bytes. Nothing else moves.
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsify.data.sequences import Data, sample
from sparsify.engine.contract import FUNCTION, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.program import Program
from sparsify.ir.views.targets import refuse_shared, targeted
from sparsify.pack.precisions import Precision, bytes_of, rounding_costs
from sparsify.tensors.allocation import worth_most
from sparsify.tensors.packing.fit import Wanted
from sparsify.tensors.packing.layout import GROUPS
from sparsify.train.losses import check_labels


@dataclass(frozen=True)
class AllocateValues(Pass):
    """Choose int8 or int4 for every targeted weight, at most `bytes` for each of their weights.

    `int4` and `int8` are the columns that share a scale; `samples` sequences are run, one backward each.
    """

    name: ClassVar[str] = "allocate-values"
    moves: ClassVar[Moves] = FUNCTION
    bytes: float = 0.55
    pattern: str = "2:4"
    int4: int = 32
    int8: int = 64
    samples: int = 32
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Needs data; what is rounded already cannot be weighed any more."""
        return effect(sets=["values"], wants=["data"], bars=["quantizers", "row-scales"])

    def check(self, program: Program) -> None:
        """The groups and the pattern must be ones that can be packed, and linears alone read the weights."""
        Wanted.parse(self.pattern)
        for name, group in (("int4", self.int4), ("int8", self.int8)):
            if group not in GROUPS:
                raise OptionError(
                    f"{name}={group} is no group: 32, 64, 96 or 128 columns share a scale"
                )
        if self.samples < 1:
            raise OptionError(f"samples={self.samples} measure nothing; use 32")
        views = targeted(program, self.targets, self.ignore, experts=True)
        refuse_shared(program, views, "it could not be rounded for them alone")

    def check_data(self, program: Program, data: Data) -> None:
        """The loss must be one that the model's outputs and the data's labels make."""
        check_labels(
            program, data, "there is no loss to measure; choose values in insert-quantizers"
        )

    def rewrite(self, program: Program, context: Context) -> int:
        """Write the values into the plan; returns the number of weights."""
        assert context.data is not None
        views = {v.weight: v for v in targeted(program, self.targets, self.ignore, experts=True)}
        less, more = Precision("int4", self.int4), Precision("int8", self.int8)
        wanted = Wanted.parse(self.pattern)
        small, large = (
            {path: bytes_of(program, view, precision, wanted) for path, view in views.items()}
            for precision in (less, more)
        )
        budget = int(self.bytes * sum(program.tensor(path).numel() for path in views))
        spare = self._spare(program, small, budget)
        indices = sample(context.data, self.samples, context.seed)
        costs = rounding_costs(program, views, (less, more), context.data, indices)
        taken = worth_most(
            [costs[less][path] - costs[more][path] for path in views],
            [large[path] - small[path] for path in views],
            spare,
        )
        chosen = {path: more if wide else less for path, wide in zip(views, taken, strict=True)}
        program.plan["values"] = {path: str(precision) for path, precision in chosen.items()}
        self._tell(program, context, chosen, {less: small, more: large})
        return len(views)

    def _spare(self, program: Program, small: dict[str, int], budget: int) -> int:
        """The bytes that are left when everything is int4."""
        least = sum(small.values())
        if least > budget:
            count = sum(program.tensor(path).numel() for path in small)
            raise OptionError(
                f"bytes={self.bytes} are too few: int4 everywhere takes {least / count:.3f} for each weight"
            )
        return budget - least

    def _tell(
        self,
        program: Program,
        context: Context,
        chosen: dict[str, Precision],
        sizes: dict[Precision, dict[str, int]],
    ) -> None:
        count = sum(program.tensor(path).numel() for path in chosen)
        total = sum(sizes[precision][path] for path, precision in chosen.items())
        wide = sum(precision.values == "int8" for precision in chosen.values())
        context.notes.append(
            f"{wide} weights in int8, {len(chosen) - wide} in int4: {total / count:.3f} bytes a weight"
        )
