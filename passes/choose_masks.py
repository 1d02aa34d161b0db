"""choose-masks: decide what stays.

    mask <- keep(score, sparsity or N:M)

Weights: `magnitude` |W| and `ria` (one threshold a linear), `wanda` |W_ij| ||x_j|| and `dsnot`, which swaps
what it chose (ranked in each row), `sparsegpt` (with error feedback) and `alps` (by splitting), which also
move the kept weights (`sparsegpt` onto the grid of quantizers, too), `taylor` |W dL/dW| (ranked over all
layers); an N:M pattern keeps N of every M inputs in each row. With neither sparsity nor pattern each gets
its share of `allocate-sparsity`. Channels and heads: `magnitude`, `wanda` (Wanda-sp), `activation`
(Minitron), `fluctuation` (FLAP), `taylor` |dL/dmask|, and of LLM-Pruner `first-order` |W G|, `second-order`
|W^2 H|, `mixed` |W G - W^2 H / 2|. Experts and hidden: `magnitude` and those of LLM-Pruner, hidden also
`activation` (Minitron); at least as many experts stay as a token is sent to. Layers and blocks, all ranked
together: `magnitude`, the mean of |W| inside, or `influence` 1 - cos(x, y) of what goes in and comes out
(ShortGPT), which `activation` means for them, too (Minitron).
The text of the graph stays.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, get_args

from torch import Tensor

from sparsify.data.sequences import sample
from sparsify.engine.contract import FUNCTION, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.features.block_mask import KINDS
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear, linears
from sparsify.ir.views.targets import targeted
from sparsify.select.channels_and_heads import (
    choose_blocks,
    choose_experts,
    choose_groups,
    choose_width,
    keep_blocks,
    most,
)
from sparsify.select.gradients import weight_gradients
from sparsify.select.groups import Amount, Rule, heads_left
from sparsify.select.importance import (
    OF_DATA,
    OF_GRADIENTS,
    OF_STATISTICS,
    Criterion,
    Normalise,
    Score,
)
from sparsify.select.one_shot import Method, OneShot, prune_linears
from sparsify.select.target_shape import Heads, Shape
from sparsify.select.weights import (
    Gradients,
    Target,
    check_axes,
    choose_together,
    masked,
    store_masks,
    targets_of,
)
from sparsify.tensors.masks import keep_top

Kind = Literal["weights", "channels", "heads", "experts", "layers", "blocks", "hidden"]
_OF_WEIGHTS = (*get_args(Method), "taylor")
_OF_BLOCKS = ("magnitude", "influence", "activation")
_WITH_STATISTICS = {*get_args(Method), *OF_STATISTICS} - {"magnitude"}


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
    of: tuple[Kind, ...] = ("weights",)
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
        needs = [f"mask.{kind}" for kind in self.of]
        blocks = [kind for kind in self.of if kind in KINDS]
        others = set(self.of) - set(blocks)
        needs += ["stats"] if others and self.score in _WITH_STATISTICS else []
        needs += ["shares"] if self._by_plan() else []
        runs = self.score in OF_DATA or (blocks and self.score in _OF_BLOCKS[1:])
        wants = ["data"] if runs else []
        needs += ["quantizers"] if self.scales else []
        sets = ["quantized"] if self.scales else []
        return effect(needs=needs, sets=sets, wants=wants, bars=["row-scales"])

    def check(self, program: Program) -> None:
        """Sparsity, pattern, shape, score and globs must fit each other and the weights."""
        self._targeted(program)
        if len(set(self.of)) < len(self.of):
            raise OptionError(f"of={','.join(self.of)} names one kind twice")
        if self.of == ("weights",):
            self._check_weights()
        else:
            self._check_groups(program)
        if self.scales is not None and (self.of, self.score) != (("weights",), "sparsegpt"):
            raise OptionError(
                f"scales={self.scales} rounds what score=sparsegpt keeps of weights; put choose-scales "
                "behind any other choice"
            )
        if self.multiple < 1:
            raise OptionError(f"multiple={self.multiple} must be at least 1")

    def check_featured(self, program: Program, featured: Mapping[str, frozenset[str]]) -> None:
        """The pattern must fit the weights that will have masks, and there must be some."""
        if self.of != ("weights",):
            return
        views = masked(self._targeted(program), featured)
        if not self._by_plan():
            check_axes(program, views, Target.of(self.sparsity, self.pattern))

    def heads_left(self, program: Program) -> Heads | None:
        """Known when every layer keeps the same number, whatever the scores."""
        some = (self.targets, self.ignore) != (("*",), ())
        if "heads" not in self.of or some or self.scope == "global":
            return None
        left = heads_left(program, self._amount("none"))
        return None if left is None else Heads(*left)

    def _check_weights(self) -> None:
        if self.score not in _OF_WEIGHTS:
            instead = "wanda" if self.score in OF_STATISTICS else "taylor"
            raise OptionError(
                f"score={self.score} is for channels and heads; use {instead} for weights"
            )
        if self.to is not None or self.normalise != "auto":
            raise OptionError("to and normalise are for channels and heads, not for weights")
        if not self._by_plan():
            Target.of(self.sparsity, self.pattern)
        elif self.scope == "global" or self.score == "taylor":
            raise OptionError(
                "a ranking over all layers has no place for their shares; give a sparsity"
            )

    def _check_groups(self, program: Program) -> None:
        kinds = ",".join(self.of)
        if "weights" in self.of:
            raise OptionError(f"of={kinds} mixes weights with groups; choose them in two passes")
        if self.pattern is not None or self.score == "sparsegpt":
            raise OptionError(f"a pattern or score=sparsegpt is for weights, not for {kinds}")
        for kind in self.of:
            if self.score not in (scores := self._scores_of(kind)):
                raise OptionError(
                    f"score={self.score} is not for {kind}; choose {' or '.join(scores[:2])}"
                )
        if self.scope != "global" and self.normalise != "auto":
            raise OptionError("normalise is for scope=global; elsewhere layers are not compared")
        if self.to is None:
            Target.of(self.sparsity, None)
        else:
            self._check_shape(program, self.to)

    def _check_shape(self, program: Program, to: Shape) -> None:
        kinds, sizes = ",".join(self.of), to.sizes()
        if self.sparsity is not None or self.scope == "global" or self.multiple != 1:
            raise OptionError(
                "to says every size, so that sparsity, scope and multiple have no place"
            )
        if sizes.keys() != set(self.of):
            raise OptionError(f"of={kinds} and to={to} must name the same kinds")
        for kind, size in sizes.items():
            largest = most(program, kind)
            if not 0 < size <= largest:
                raise OptionError(
                    f"{kind}={size} cannot be kept of the {largest} {kind} that the program has"
                )

    def _targeted(self, program: Program) -> list[Linear]:
        experts = self.of != ("weights",)
        return targeted(program, self.targets, self.ignore, experts=experts)

    def _scores_of(self, kind: str) -> tuple[str, ...]:
        """The scores that a kind of group takes."""
        if kind in KINDS:
            return _OF_BLOCKS
        if kind in ("experts", "hidden"):
            felt = ("activation",) if kind == "hidden" else ()
            return ("magnitude", *felt, *sorted(OF_GRADIENTS))
        return ("magnitude", "taylor", *sorted(OF_STATISTICS | OF_DATA))

    def rewrite(self, program: Program, context: Context) -> int:
        """Choose every mask; returns how many."""
        chosen = {view.weight for view in self._targeted(program)}
        if self.of == ("weights",):
            return self._weights(program, context, chosen)
        indices = sample(context.data, self.samples, context.seed) if context.data else []
        by = Criterion(self.score, self._normalised(), context.data, indices, self.batch)
        sparsity, places = self.sparsity or 0.0, 0
        for kind in self.of:
            multiple = self.multiple if self.of == (kind,) else 1
            if kind in KINDS:
                places += choose_blocks(program, kind, chosen, by, self._keep(kind, multiple))
            elif kind == "experts":
                places += choose_experts(program, chosen, by, sparsity, multiple)
            elif kind == "hidden":
                places += choose_width(program, by, sparsity, multiple)
        kinds = [kind for kind in self.of if kind in ("channels", "heads")]
        if kinds:
            places += choose_groups(program, kinds, chosen, by, self._amount(by.normalise))
        return places

    def _keep(self, kind: str, multiple: int) -> Callable[[Tensor], Tensor]:
        """Makes the keep-mask of the scores of layers or blocks."""
        if self.to is not None:
            return partial(keep_top, count=self.to.sizes()[kind])
        return partial(keep_blocks, sparsity=self.sparsity or 0.0, multiple=multiple)

    def _weights(self, program: Program, context: Context, chosen: set[str]) -> int:
        views = {v.weight: v for v in masked(v for v in linears(program) if v.weight in chosen)}
        target = None if self._by_plan() else Target.of(self.sparsity, self.pattern)
        targets = targets_of(program, views, target)
        if target is not None and (self.score == "taylor" or self.scope == "global"):
            gradients = self._gradients(program, context)
            scope = "global" if self.scope == "auto" else self.scope
            masks = choose_together(program, views, self.score, gradients, target, scope)
        else:
            context.progress.start(self.name, len(views))
            how = {
                path: OneShot(self.score, one, self.scope, self.damping)  # type: ignore[arg-type]
                for path, one in targets.items()
            }
            told = context.progress.advance
            masks = prune_linears(program, views, how, told, scales=self.scales)
        store_masks(program, views, masks, targets)
        return len(masks)

    def _by_plan(self) -> bool:
        return self.of == ("weights",) and self.sparsity is None and self.pattern is None

    def _normalised(self) -> Normalise:
        """How layers are made comparable; `auto` leaves scores that estimate the loss as they are."""
        if self.normalise != "auto":
            return self.normalise
        comparable = self.score in OF_DATA or (len(self.of) == 1 and self.score != "fluctuation")
        return "none" if self.scope != "global" or comparable else "standard"

    def _amount(self, normalise: Normalise) -> Amount:
        several = len(self.of) > 1
        return Amount(
            sparsity=self.sparsity or 0.0,
            sizes=self.to.sizes() if self.to is not None else {},
            scope=self.scope,
            rule=self.rule,
            multiple=self.multiple,
            rounded=frozenset({"channels"} if several else self.of),
            per_parameter=several and normalise == "none",
        )

    def _gradients(self, program: Program, context: Context) -> Gradients:
        if self.score != "taylor":
            return {}
        assert context.data is not None
        indices = sample(context.data, self.samples, context.seed)
        return weight_gradients(program, context.data, indices, self.batch)
