"""insert-probes: watch the input of linears, or what routers choose.

    linears:  linear(x, W)  ->  linear(probe(x, statistics), W)
    experts:  x W[e]        ->  probe(x, statistics) W[e]
    routers:  numbers       ->  probe(numbers, scores, statistics)

`x [..., in]`; the statistics are over tokens: their count, the mean `[in]`, the scatter `sum (x - mean)^2
[in]`, over sequences the squared mean size `[in]`, and with `gram=true` `sum x x^T [in, in]`; of experts
`[experts, ...]`, each over the tokens that are sent to it, which count as one sequence. Of a router
that chooses `numbers [tokens, k]` by `scores [tokens, experts]`: how often each expert is chosen
`[experts]`, and `sum c c^T [experts, experts]`, c the scores of a token less their mean. A probe is
the identity, so outputs stay bitwise; `calibrate` fills it.
Linears that read the same activation share one probe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import fx

from sparsify.engine.contract import NOTHING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.graph import Writer, redirect
from sparsify.ir.ops.probe import probe, probe_experts, probe_routes
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear, feature_size
from sparsify.ir.views.router import numbers_of
from sparsify.ir.views.stacks import tokens_of
from sparsify.ir.views.targets import targeted
from sparsify.select.collector import empty_statistics
from sparsify.select.kinds.experts import mixing_routers
from sparsify.select.routes import empty_routes


@dataclass(frozen=True)
class InsertProbes(Pass):
    """Watch the input of every targeted linear; `gram` also keeps `sum x x^T`, which SparseGPT needs.

    With `of=routers` watch the routers among the targets instead, with `of=linears,routers` both.
    """

    name: ClassVar[str] = "insert-probes"
    moves: ClassVar[Moves] = NOTHING
    of: tuple[Literal["linears", "routers"], ...] = ("linears",)
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    gram: bool = False

    def effect(self) -> Effect:
        """Adds probes."""
        return effect(adds=["probe"], bars=["omission"])

    def check(self, program: Program) -> None:
        """Globs must match, and routers be there where they are to be watched."""
        if not self.of or len(set(self.of)) < len(self.of):
            raise OptionError(f"of={','.join(self.of)} must name linears, routers, or each once")
        views = self._views(program)
        if "routers" in self.of:
            mixing_routers(program, views)

    def featured_weights(self, program: Program) -> Mapping[str, frozenset[str]]:
        """The routers that get a probe."""
        if "routers" not in self.of:
            return {}
        found = mixing_routers(program, self._views(program))
        return {"probe.routers": frozenset(router.weight for router in found)}

    def rewrite(self, program: Program, context: Context) -> int:
        """Put one probe on each activation that a targeted linear reads, and behind each router."""
        views = self._views(program)
        places = _watch_routers(program, views) if "routers" in self.of else 0
        return places + (self._watch_linears(program, views) if "linears" in self.of else 0)

    def _watch_linears(self, program: Program, views: Sequence[Linear]) -> int:
        watched: dict[tuple[fx.Node, bool], fx.Node] = {}
        for view in views:
            key = (view.x, view.stacked)
            if key in watched:
                view.node.replace_input_with(view.x, watched[key])
                continue
            writer = Writer(program, before=view.node)
            weight = program.tensor(view.weight)
            experts = weight.shape[:1] if view.stacked else ()
            size = feature_size(view.x)
            buffers = empty_statistics(view.weight, size, gram=self.gram, experts=experts)
            reads = [writer.buffer(p, value.to(weight.device)) for p, value in buffers.items()]
            if view.stacked:
                rows = (view.ends, tokens_of(program, view))
                watched[key] = writer.call(probe_experts, view.x, *rows, *reads)
            else:
                watched[key] = writer.call(probe, view.x, *reads)
            view.node.replace_input_with(view.x, watched[key])
        return len(watched)

    def _views(self, program: Program) -> list[Linear]:
        return targeted(program, self.targets, self.ignore, experts="linears" in self.of)


def _watch_routers(program: Program, views: Sequence[Linear]) -> int:
    found = mixing_routers(program, views)
    for router in found:
        device = program.tensor(router.weight).device
        buffers = empty_routes(router.weight, router.size)
        for numbers in numbers_of(router.node)[:1]:
            writer = Writer(program, after=numbers)
            reads = [writer.buffer(path, value.to(device)) for path, value in buffers.items()]
            redirect(numbers, writer.call(probe_routes, numbers, router.scores, *reads))
    return len(found)
