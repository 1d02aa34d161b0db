"""insert-probes: watch the input of linears.

    linear(x, W)  ->  linear(probe(x, statistics), W)

`x [..., in]`; the statistics are over tokens: their count, the mean `[in]`, the scatter `sum (x - mean)^2
[in]`, over sequences the squared mean size `[in]`, and with `gram=true` `sum x x^T [in, in]`. A probe is
the identity, so outputs stay bitwise; `calibrate` fills it.
Linears that read the same activation share one probe.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sparsify.engine.contract import NOTHING, Context, Effect, Moves, Pass, effect
from sparsify.ir.graph import Writer
from sparsify.ir.ops.probe import probe
from sparsify.ir.program import Program
from sparsify.ir.views.linear import feature_size
from sparsify.ir.views.targets import targeted
from sparsify.select.statistics import empty_statistics


@dataclass(frozen=True)
class InsertProbes(Pass):
    """Watch the input of every targeted linear; `gram` also keeps `sum x x^T`, which SparseGPT needs."""

    name: ClassVar[str] = "insert-probes"
    moves: ClassVar[Moves] = NOTHING
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    gram: bool = False

    def effect(self) -> Effect:
        """Adds probes."""
        return effect(adds=["probe"], bars=["omission"])

    def check(self, program: Program) -> None:
        """Globs must match."""
        targeted(program, self.targets, self.ignore)

    def rewrite(self, program: Program, context: Context) -> int:
        """Put one probe on each activation that a targeted linear reads."""
        watched: dict[fx.Node, fx.Node] = {}
        for view in targeted(program, self.targets, self.ignore):
            if view.x in watched:
                view.node.replace_input_with(view.x, watched[view.x])
                continue
            writer = Writer(program, before=view.node)
            buffers = empty_statistics(view.weight, feature_size(view.x), gram=self.gram)
            device = program.tensor(view.weight).device
            reads = [writer.buffer(path, value.to(device)) for path, value in buffers.items()]
            watched[view.x] = writer.call(probe, view.x, *reads)
            view.node.replace_input_with(view.x, watched[view.x])
        return len(watched)
