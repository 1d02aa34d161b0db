"""insert-quantizers: rounding of weights and inputs of linears, an identity until scales are chosen.

    linear(x, W)       ->  linear(R(x), Q(W, scales))
    embedding(W, ids)  ->  embedding(Q(W, scales), ids)            with ends=true
    Q(W)_ok = scale_og clamp(round(W_ok / scale_og), -q, q)        W_ok where the scale is 0
    R(x)_tk = s_tg round(x_tk / s_tg), s_tg = max |x_tg| / 127     x_tk while it is off

`W [out, in]`, scales float16 `[out, groups]`, one for each row and `group` columns, all 0 at first; `q` is
127 for int8 and 7 for int4. `R` rounds each token and group to int8, as the kernels do (docs/packed.md), and
is off at first. So outputs stay bitwise; `choose-scales` switches both on. `Q` stands outermost:
`Q(mask * (W + c B A))`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from sparsify.engine.contract import NOTHING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.features.quantizers import add_quantizers, add_table_quantizer
from sparsify.ir.program import Program
from sparsify.ir.views.embedding import output_heads, tables
from sparsify.ir.views.linear import Linear
from sparsify.ir.views.targets import expected, refuse_shared, targeted
from sparsify.tensors.packing.layout import GROUPS


@dataclass(frozen=True)
class InsertQuantizers(Pass):
    """Round every targeted weight to `values`, and with `activations` the input of its linear to int8.

    Branches beside weights are targets of their own, as in `targets=*_adapter_*`. With `ends` also what
    stands at both ends of the model: the tables of embeddings, and the linear that makes the outputs.
    """

    name: ClassVar[str] = "insert-quantizers"
    moves: ClassVar[Moves] = NOTHING
    values: Literal["int8", "int4"] = "int8"
    group: int = 128
    activations: bool = True
    ends: bool = False
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Adds quantizers; heads and channels must be gone before, because their columns share scales."""
        return effect(adds=["quantizers"], bars=["mask.channels", "mask.heads", "omission"])

    def check(self, program: Program) -> None:
        """The group must be one that can be packed, globs must match, linears alone may read the weights."""
        if self.group not in GROUPS:
            raise OptionError(
                f"group={self.group} cannot be packed; it is 32, 64, 96 or 128 columns"
            )
        views = self._with_heads(program, expected(program, self.targets, self.ignore))
        why = "it could not be rounded for them alone"
        refuse_shared(program, views, why, tables=self.ends)

    def rewrite(self, program: Program, context: Context) -> int:
        """Insert every quantizer; returns how many weights have one."""
        views = self._with_heads(program, targeted(program, self.targets, self.ignore))
        found = tables(program) if self.ends else []
        for view in views:
            add_quantizers(program, view, self.values, self.group, x=self.activations)
        for table in found:
            add_table_quantizer(program, table, self.values, self.group)
        return len({view.weight for view in views} | {table.weight for table in found})

    def _with_heads(self, program: Program, views: list[Linear]) -> list[Linear]:
        if not self.ends:
            return views
        known = {view.node for view in views}
        return views + [view for view in output_heads(program) if view.node not in known]
