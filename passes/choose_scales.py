"""choose-scales: choose the scales of rounded weights, and switch the rounding of inputs on.

    scales <- by(mask * (W + c B A)),   on <- true

`absmax`: `scale_og = max_k |W_ok| / q` over the columns of a group, nothing is clipped. `mse`: the clip of
least squared error, searched for each group (as in the code of GPTQ, Frantar et al. 2022, 2210.17323).
`histogram`: one scale for the whole weight, the clip of least expected error over a histogram of |W|
(SLiM-Quant, Mozaffari et al. 2024, 2410.09615). The program then computes what packed int8 or int4 weights
compute. The text of the graph stays; choosing again is allowed, after more training say.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from sparsify.engine.contract import FUNCTION, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError, SparsifyError
from sparsify.ir.program import Program
from sparsify.ir.views.embedding import Table, tables
from sparsify.ir.views.globs import matches
from sparsify.ir.views.linear import Linear, apart, composed_weight, out_in, products, together
from sparsify.ir.views.targets import expected
from sparsify.select.weights import store_scales
from sparsify.tensors.packing.layout import BITS
from sparsify.tensors.quantize import SCALES


@dataclass(frozen=True)
class ChooseScales(Pass):
    """Choose the scales of every targeted weight that has a quantizer, the ends of the model too."""

    name: ClassVar[str] = "choose-scales"
    moves: ClassVar[Moves] = FUNCTION
    by: Literal["absmax", "mse", "histogram"] = "absmax"
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Needs quantizers; afterwards the program is quantized."""
        return effect(needs=["quantizers"], sets=["quantized"], bars=["row-scales"])

    def check(self, program: Program) -> None:
        """Globs must match."""
        expected(program, self.targets, self.ignore, experts=True)

    def rewrite(self, program: Program, context: Context) -> int:
        """Choose the scales of every weight once; returns how many."""
        every: list[Linear | Table] = [*tables(program), *products(program)]
        views = {v.weight: v for v in every if v.quantizer and self._wants(v.weight)}
        if not views:
            raise OptionError(
                "no target has a quantizer; widen the targets, or those of insert-quantizers"
            )
        context.progress.start(self.name, len(views))
        for view in views.values():
            self._choose(program, view)
            context.progress.advance()
        return len(views)

    def _wants(self, path: str) -> bool:
        wanted = any(matches(path, glob) for glob in self.targets)
        return wanted and not any(matches(path, glob) for glob in self.ignore)

    def _choose(self, program: Program, view: Linear | Table) -> None:
        assert view.quantizer is not None
        by, group, bits = SCALES[self.by], view.quantizer.group, BITS[view.quantizer.values]
        try:
            if isinstance(view, Table):
                scales = by(program.tensor(view.weight).detach(), group, bits)
            else:
                weight = out_in(view, composed_weight(program, view))
                scales = together(view, [by(one, group, bits) for one in apart(view, weight)])
        except SparsifyError as error:
            raise type(error)(f"@{view.weight}: {error}") from error
        store_scales(program, view, scales)
