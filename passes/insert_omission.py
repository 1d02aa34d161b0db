"""insert-omission: whole heads and channels can be left out of a training step.

    k = kept_neurons(x, W_in ...),   linear(x, W_in)  ->  linear(x, keep_rows(W_in, k, 0))
                                     linear(h, W_out) ->  linear(h, keep_rows(W_out, k, 1))

`x [..., in]` is the input of the sub-block; every tensor of the coupled axis keeps the chosen neurons, and
sizes written into the graph follow: pruning with indices of the moment. At rest, in evaluation mode and
at rate 0 all stay and every op is the identity. `train{schedule=lors{...}}` says the rate. Neurons are
scored from x and W_in alone, at a cost of O(tokens * in + in * out), and nothing that is left out is ever
computed. Source: SAT (2406.01392).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from sparsify.engine.contract import NOTHING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.axes.walk import Analysis, analyse
from sparsify.ir.features.omission import Neurons, add_omission, neurons
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import graph_features
from sparsify.ir.views.targets import targeted
from sparsify.select.groups import prunable


@dataclass(frozen=True)
class InsertOmission(Pass):
    """Let heads and channels be chosen anew at each step.

    `metric`: `uniform` 1, `magnitude` ||w||, `wanda` sum of |w| ||X||, `maxip` |<mean x, w>|, summed over
    the rows that make a neuron. `select`: the best (`topk`), or drawn by score without replacement
    (`sampling`). `rule`: the same number of query heads in every KV group (`inside`: keys and values
    stay, which keeps the ratio of grouped attention whole and the choice fine), or whole KV groups
    (`groups`). Channels stay in multiples of `multiple`. `form=zero` multiplies by zero instead, which
    saves nothing: the control.
    """

    name: ClassVar[str] = "insert-omission"
    moves: ClassVar[Moves] = NOTHING
    of: tuple[Literal["heads", "channels"], ...] = ("heads", "channels")
    metric: Literal["uniform", "magnitude", "wanda", "maxip"] = "maxip"
    select: Literal["topk", "sampling"] = "topk"
    rule: Literal["inside", "groups"] = "inside"
    multiple: int = 16
    form: Literal["gather", "zero"] = "gather"
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Adds the feature; what other passes have put around weights must be gone."""
        return effect(adds=["omission"], bars=graph_features() - {"omission"})

    def check(self, program: Program) -> None:
        """Something must be there to omit, in multiples that leave a choice."""
        if len(set(self.of)) < len(self.of) or not self.of:
            raise OptionError(
                f"of={','.join(self.of)} must name heads, channels or both, each once"
            )
        if self.metric == "uniform" and self.select == "topk":
            raise OptionError("uniform scores have no best neurons; use select=sampling")
        found = self._sites(program, analyse(program))
        for site in found:
            if site.kind == "channels" and not 1 <= self.multiple <= site.size // 2:
                raise OptionError(
                    f"multiple={self.multiple} leaves nothing to choose among {site.size} channels; "
                    f"use at most {site.size // 2}"
                )

    def rewrite(self, program: Program, context: Context) -> int:
        """Insert every choice; returns how many. Sites that cannot be chosen on the way are noted."""
        analysis = analyse(program)
        found = self._sites(program, analysis)
        reasons = add_omission(
            program,
            analysis,
            found,
            metric=self.metric,
            select=self.select,
            multiple=self.multiple,
            zero=self.form == "zero",
        )
        if len(reasons) == len(found):
            raise OptionError(f"nothing can be omitted: {reasons[0]}")
        context.notes.extend(reasons)
        return len(found) - len(reasons)

    def _sites(self, program: Program, analysis: Analysis) -> list[Neurons]:
        wanted = {view.weight for view in targeted(program, self.targets, self.ignore)}
        found = [
            neurons(group, self.rule)
            for kind in self.of
            for group in prunable(analysis, kind)
            if any(consumer.weight in wanted for consumer in group.consumers)
        ]
        if not found:
            kinds = " or ".join(self.of)
            raise OptionError(
                f"no target takes prunable {kinds} in; `sparsify-fx show MODEL --axes` says why"
            )
        return found
