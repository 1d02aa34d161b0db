"""choose-masks: decide what stays.

    mask <- keep(score, sparsity or N:M)

Weights: `magnitude` |W| and `ria` (one threshold a linear), `wanda` |W_ij| ||x_j|| and `dsnot`, which swaps
what it chose (ranked in each row), `sparsegpt` (with error feedback) and `alps` (by splitting), which also
move the kept weights (`sparsegpt` onto the grid of quantizers, too), `taylor` |W dL/dW| (ranked over all
layers); an N:M pattern keeps N of every M inputs in each row. With neither sparsity nor pattern each gets
its share of `allocate-sparsity`. Convolutions: `magnitude`, to a sparsity of each, of each output (`row`) or
of all of them (`global`). Channels and heads: `magnitude`, `wanda` (Wanda-sp), `activation`
(Minitron), `fluctuation` (FLAP), `taylor` |dL/dmask|, and of LLM-Pruner `first-order` |W G|, `second-order`
|W^2 H|, `mixed` |W G - W^2 H / 2|. Experts and hidden: `magnitude` and those of LLM-Pruner, hidden also
`activation` (Minitron), experts also `frequency`, how often they are chosen, and `router`, the norm of their
row of it; at least as many experts stay as a token is sent to. Layers and blocks, all ranked
together: `magnitude`, the mean of |W| inside, or `influence` 1 - cos(x, y) of what goes in and comes out
(ShortGPT), which `activation` means for them, too (Minitron).
The text of the graph stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from sparsify.data.sequences import Data, sample
from sparsify.engine.contract import FUNCTION, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.program import Program
from sparsify.select.groups import Rule, heads_left
from sparsify.select.importance import OF_DATA, Criterion, Score
from sparsify.select.kinds.asked import Asked
from sparsify.select.kinds.catalogue import KINDS, Name, families, kinds_of
from sparsify.select.kinds.kind import Choice
from sparsify.select.statistics import never_chosen
from sparsify.select.target_shape import Heads, Shape
from sparsify.select.weights import check_axes, masked
from sparsify.train.losses import check_labels


@dataclass(frozen=True)
class ChooseMasks(Pass):
    """Choose masks by a score, to a sparsity, an N:M pattern or a target shape.

    `scope` is what weights are ranked against: `row`, `layer`, `global`, or `auto` for what the method's
    paper does. Groups: `global` ranks over all layers, and over all kinds of `of` together, with `sparsity`
    the fraction of their parameters that goes; anything else keeps the same fraction in each layer.
    `normalise` makes layers and kinds comparable in a global ranking: `standard` scores less their mean over
    their spread, in each layer, as FLAP does (auto: for all but the scores that estimate the loss, where
    several kinds are ranked by score over parameters); `mean` scores over their mean; `none`. `scales` says
    how `sparsegpt` chooses the scales of quantizers: what it keeps is then rounded in the same sweep, and
    what rounding costs repaired with what pruning does.
    `to=shape{layers=24 heads=16 channels=5504}` keeps so many layers, and gives each these sizes. `rule` and
    `multiple` hold for groups: whole KV groups or the same number of heads `inside` each; the number kept is
    rounded up to a multiple (of channels alone when there are several kinds). `samples` and `batch` are for
    scores that run the model.
    """

    name: ClassVar[str] = "choose-masks"
    moves: ClassVar[Moves] = FUNCTION
    of: tuple[Name, ...] = ("weights",)
    score: Score = "magnitude"
    sparsity: float | None = None
    pattern: str | None = None
    to: Shape | None = None
    scope: Literal["auto", "row", "layer", "global"] = "auto"
    normalise: Literal["auto", "none", "mean", "standard"] = "auto"
    rule: Rule = "groups"
    multiple: int = 1
    damping: float = 0.01
    scales: Literal["absmax", "mse"] | None = None
    samples: int = 32
    batch: int = 4
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Needs the masks, statistics or data when the score does, and quantizers to choose scales."""
        kinds = [KINDS[name] for name in self.of]
        needs = [kind.feature for kind in kinds]
        needs += ["stats"] if any(self.score in kind.of_statistics for kind in kinds) else []
        needs += ["shares"] if self._asked.planned else []
        needs += ["quantizers"] if self.scales else []
        wants = ["data"] if any(self.score in kind.of_data for kind in kinds) else []
        sets = ["quantized"] if self.scales else []
        return effect(needs=needs, sets=sets, wants=wants, bars=["row-scales"])

    def check(self, program: Program) -> None:
        """Sparsity, pattern, shape, score and globs must fit each other and the weights."""
        for kind in kinds_of(self.of):
            kind.targeted(program, self.targets, self.ignore)
        self._asked.check(program)
        if self.scales is not None and (self.of, self.score) != (("weights",), "sparsegpt"):
            raise OptionError(
                f"scales={self.scales} rounds what score=sparsegpt keeps of weights; put choose-scales "
                "behind any other choice"
            )
        if self.multiple < 1:
            raise OptionError(f"multiple={self.multiple} must be at least 1")

    def check_featured(self, program: Program, featured: Mapping[str, frozenset[str]]) -> None:
        """The pattern must fit the weights that will have masks, and there must be some."""
        if not self._asked.weights:
            return
        views = masked(KINDS["weights"].targeted(program, self.targets, self.ignore), featured)
        target = self._asked.share()
        if target is not None:
            check_axes(program, views, target)

    def check_data(self, program: Program, data: Data) -> None:
        """Where the score is one of gradients, labels must have a loss."""
        if self.score in OF_DATA:
            check_labels(program, data, f"score={self.score} has no loss; choose another score")

    def heads_left(self, program: Program) -> Heads | None:
        """Known when every layer keeps the same number, whatever the scores."""
        some = (self.targets, self.ignore) != (("*",), ())
        if "heads" not in self.of or some or self.scope == "global":
            return None
        left = heads_left(program, self._asked.amount())
        return None if left is None else Heads(*left)

    def rewrite(self, program: Program, context: Context) -> int:
        """Choose every mask; returns how many."""
        asked, data = self._asked, context.data
        indices = sample(data, self.samples, context.seed) if data else []
        choice = Choice(
            by=Criterion(self.score, asked.normalised(), data, indices, self.batch),
            amount=asked.amount(),
            share=asked.share(),
            damping=self.damping,
            scales=self.scales,
            start=lambda count: context.progress.start(self.name, count),
            advance=context.progress.advance,
        )
        places = 0
        for kinds in families(self.of):
            views = kinds[0].targeted(program, self.targets, self.ignore)
            places += kinds[0].choose(program, [kind.name for kind in kinds], views, choice)
            if any(self.score in kind.of_statistics for kind in kinds):
                context.notes.extend(never_chosen(program, views))
        return places

    @property
    def _asked(self) -> Asked:
        return Asked(
            self.of,
            self.score,
            self.sparsity,
            self.pattern,
            self.to,
            self.scope,
            self.normalise,
            self.rule,
            self.multiple,
        )
