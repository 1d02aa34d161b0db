"""insert-quantizers: rounding of weights and inputs of linears, an identity until scales are chosen.

    linear(x, W)       ->  linear(R(x), Q(W, scales))
    embedding(W, ids)  ->  embedding(Q(W, scales), ids)            with ends=true
    Q(W)_ok = scale_og clamp(round(W_ok / scale_og), -q, q)        W_ok where the scale is 0
    R(x)_tk = s_tg round(x_tk / s_tg), s_tg = max |x_tg| / 127     x_tk while it is off

`W [out, in]`, scales float16 `[out, groups]`, of experts `[experts, ...]`, one for each row and `group`
columns, all 0 at first; `q` is 127 for int8 and 7 for int4. `R` rounds each token and group to int8, as the
kernels do (docs/packed.md), and is off at first. So outputs stay bitwise; `choose-scales` switches both on.
`Q` stands outermost: `Q(mask * (W + c B A))`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from sparsify.engine.contract import NOTHING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.features.quantizers import add_quantizers, add_table_quantizer
from sparsify.ir.program import Program
from sparsify.ir.views.embedding import output_heads, tables
from sparsify.ir.views.linear import Linear
from sparsify.ir.views.stacks import left_whole
from sparsify.ir.views.targets import expected, refuse_shared, targeted
from sparsify.pack.precisions import Precision
from sparsify.tensors.packing.layout import GROUPS

_GROUP = 128  # columns that share a scale where nothing else is said


@dataclass(frozen=True)
class InsertQuantizers(Pass):
    """Round every targeted weight to `values`, and with `activations` the input of its linear to int8.

    `group` columns share a scale, 128 unless said. With `values=allocated` each weight gets the values and
    the group that `allocate-values` gave it.
    Branches beside weights are targets of their own, as in `targets=*_adapter_*`. With `ends` also what
    stands at both ends of the model: the tables of embeddings, and the linear that makes the outputs.
    """

    name: ClassVar[str] = "insert-quantizers"
    moves: ClassVar[Moves] = NOTHING
    values: Literal["int8", "int4", "allocated"] = "int8"
    group: int | None = None
    activations: bool = True
    ends: bool = False
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Adds quantizers; heads, channels and experts must be gone before: what is rounded is not cut."""
        needs = ["values"] if self.values == "allocated" else []
        barred = ["mask.channels", "mask.heads", "mask.experts", "omission"]
        return effect(needs=needs, adds=["quantizers"], bars=barred)

    def check(self, program: Program) -> None:
        """The group must be one that can be packed, globs must match, linears alone may read the weights."""
        if self.group not in (None, *GROUPS):
            raise OptionError(
                f"group={self.group} cannot be packed; it is 32, 64, 96 or 128 columns"
            )
        if self.values == "allocated" and (self.group is not None or self.ends):
            raise OptionError(
                "allocate-values gives each linear its group, and gives tables none: leave out group and ends"
            )
        views = self._with_heads(
            program, expected(program, self.targets, self.ignore, experts=True)
        )
        why = "it could not be rounded for them alone"
        refuse_shared(program, views, why, tables=self.ends)

    def rewrite(self, program: Program, context: Context) -> int:
        """Insert every quantizer; returns how many weights have one. A note says which can have none."""
        context.notes.extend(left_whole(program))
        views = self._with_heads(
            program, targeted(program, self.targets, self.ignore, experts=True)
        )
        found = tables(program) if self.ends else []
        paths = {view.weight for view in views} | {table.weight for table in found}
        wanted = self._precisions(program, paths)
        for view in views:
            add_quantizers(program, view, *wanted[view.weight], x=self.activations)
        for table in found:
            add_table_quantizer(program, table, *wanted[table.weight])
        return len(paths)

    def _precisions(self, program: Program, paths: set[str]) -> dict[str, tuple[str, int]]:
        """The values and the group of each weight, by path."""
        if self.values != "allocated":
            return dict.fromkeys(paths, (self.values, self.group or _GROUP))
        planned = program.plan["values"]
        if not paths <= planned.keys():
            raise OptionError(
                f"allocate-values gave @{min(paths - planned.keys())} no values; "
                "give both passes the same targets"
            )
        found = {path: Precision.parse(planned[path]) for path in paths}
        return {path: (precision.values, precision.group) for path, precision in found.items()}

    def _with_heads(self, program: Program, views: list[Linear]) -> list[Linear]:
        if not self.ends:
            return views
        known = {view.node for view in views}
        return views + [view for view in output_heads(program) if view.node not in known]
