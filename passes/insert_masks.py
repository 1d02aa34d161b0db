"""insert-masks: boolean keep-masks, all true at first.

    weights:          linear(x, W)  ->  linear(x, W * mask)              mask like W
    convolutions:     conv(x, W)    ->  conv(x, W * mask)                mask like W
    channels, heads:  linear(x, W)  ->  linear(x * expand(mask), W)      mask [channels] or [query heads]
    experts:          scores        ->  where(mask, scores, -inf)        mask [experts]
    hidden:           linear(x, W)  ->  linear(x * mask, W)              mask [hidden]
                      norm(x)       ->  masked_norm(x, mask)             mean over what is kept
    layers, blocks:   y             ->  where(mask, y, x)                mask [1], x what y starts from

A channel or head mask stands where the coupled axis is consumed (down projection, output projection of
attention): a zero there removes the whole group. Multiplying by one is exact, so outputs stay bitwise.
`layers` are whole layers, `blocks` the residual sums in them: attention and feed-forward, `x + f(x)`, with
the norm after the sum if there is one. A block computed beside another, `x + f(x) + g(x)`, is multiplied
by its mask.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sparsify.engine.contract import NOTHING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear
from sparsify.ir.views.stacks import left_whole
from sparsify.select.kinds.catalogue import KINDS, Name, kinds_of
from sparsify.select.kinds.kind import Kind


@dataclass(frozen=True)
class InsertMasks(Pass):
    """Insert masks of one or more kinds; globs select the linear that carries the mask."""

    name: ClassVar[str] = "insert-masks"
    moves: ClassVar[Moves] = NOTHING
    of: tuple[Name, ...] = ("weights",)
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Adds one feature for each kind; what is removed goes before weights are split or rounded."""
        barred = ["omission", *(["factors"] if self.of != ("weights",) else [])]
        barred += ["quantizers"] if {"channels", "heads"} & set(self.of) else []
        return effect(adds=[KINDS[name].feature for name in self.of], bars=barred)

    def check(self, program: Program) -> None:
        """Globs must match, something must be prunable, and linears alone may read a masked weight."""
        for kind in kinds_of(self.of):
            views = self._views(kind, program)
            if kind.masked_weights(views) == frozenset():
                raise OptionError(
                    f"of={kind.name} finds nothing to mask: what makes the program's output stays unless "
                    "targets name it, as in targets=head.weight; name it, or leave the kind out"
                )
            kind.check(program, views)

    def featured_weights(self, program: Program) -> Mapping[str, frozenset[str]]:
        """The weights that get a mask of their own."""
        found = {k.feature: k.masked_weights(self._views(k, program)) for k in kinds_of(self.of)}
        return {feature: weights for feature, weights in found.items() if weights is not None}

    def rewrite(self, program: Program, context: Context) -> int:
        """Insert every mask; returns how many. A note says which weights no mask can stand at."""
        if "weights" in self.of:
            context.notes.extend(left_whole(program))
        return sum(kind.add(program, self._views(kind, program)) for kind in kinds_of(self.of))

    def _views(self, kind: Kind, program: Program) -> list[Linear]:
        return kind.targeted(program, self.targets, self.ignore)
