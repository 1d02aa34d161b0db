"""insert-masks: boolean keep-masks, all true at first.

    weights:          linear(x, W)  ->  linear(x, W * mask)              mask like W
    channels, heads:  linear(x, W)  ->  linear(x * expand(mask), W)      mask [channels] or [query heads]

A channel or head mask stands where the coupled axis is consumed (down projection, output projection of
attention): a zero there removes the whole group. Multiplying by one is exact, so outputs stay bitwise.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from sparsify.engine.contract import NOTHING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.axes.index import expand_index
from sparsify.ir.axes.walk import analyse
from sparsify.ir.groupmask import add_group_mask
from sparsify.ir.program import Program
from sparsify.ir.views import linear_at, refuse_shared, targeted
from sparsify.ir.weights import add_mask
from sparsify.select.groups import prunable

Kind = Literal["weights", "channels", "heads"]


@dataclass(frozen=True)
class InsertMasks(Pass):
    """Insert masks of one or more kinds; globs select the linear that carries the mask."""

    name: ClassVar[str] = "insert-masks"
    moves: ClassVar[Moves] = NOTHING
    of: tuple[Kind, ...] = ("weights",)
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Adds one feature for each kind."""
        return effect(adds=[f"mask.{kind}" for kind in self.of], bars=["omission"])

    def check(self, program: Program) -> None:
        """Globs must match, something must be prunable, and linears alone may read a masked weight."""
        views = targeted(program, self.targets, self.ignore)
        if len(set(self.of)) < len(self.of):
            raise OptionError(f"of={','.join(self.of)} names one kind twice")
        for kind in self.of:
            if kind == "weights":
                refuse_shared(program, views)
            else:
                _check_groups(program, kind, {view.weight for view in views})

    def rewrite(self, program: Program, context: Context) -> int:
        """Insert every mask; returns how many."""
        return sum(
            self._weights(program) if kind == "weights" else self._groups(program, kind)
            for kind in self.of
        )

    def _weights(self, program: Program) -> int:
        views = targeted(program, self.targets, self.ignore)
        for view in views:
            mask = torch.ones_like(program.tensor(view.weight), dtype=torch.bool)
            add_mask(program, view.weight, mask, view)
        return len({view.weight for view in views})

    def _groups(self, program: Program, kind: str) -> int:
        chosen = {view.weight for view in targeted(program, self.targets, self.ignore)}
        places = 0
        for found in prunable(analyse(program), kind):
            for consumer in found.consumers:
                view = linear_at(program, consumer.node)
                if view is not None and view.weight in chosen:
                    index = expand_index(consumer, found)
                    add_group_mask(program, view, kind, found.size, index)
                    places += 1
        return places


def _check_groups(program: Program, kind: str, chosen: set[str]) -> None:
    found = prunable(analyse(program), kind)
    if not found:
        raise OptionError(
            f"the program has no prunable {kind}; `sparsify-fx show MODEL --axes` says why"
        )
    readers = [consumer.weight for group in found for consumer in group.consumers]
    if chosen.isdisjoint(readers):
        raise OptionError(f"no target takes prunable {kind} in, as @{readers[0]} does")
