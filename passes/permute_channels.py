"""permute-channels: put channels in an order under which an N:M pattern keeps more; the function stays.

    D act(U x)   ->   D[:, order] act(U[order] x)

Groups of M weights are consecutive inputs. Where good inputs stand side by side a pattern must drop some of
them; after the exchange they stand apart. `channels` are those between two linears of a block, `hidden` is
the residual width, one order for all that reads it. Nothing is left to do at run time. The order is that
which `sparsify.tensors.permutation` finds for the scores of every matrix that reads the channels. Statistics
belong to the old order: calibrate again. Source: RIA (Zhang et al. 2024, ICLR), section 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sparsify.engine.contract import ROUNDING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.axes.groups import Group
from sparsify.ir.axes.shrink.shrink import reorder
from sparsify.ir.axes.walk import analyse
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear, composed_weight, out_in
from sparsify.ir.views.stacks import left_whole
from sparsify.ir.views.targets import targeted
from sparsify.select.groups import prunable
from sparsify.select.statistics import statistics_of
from sparsify.tensors import scores
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.permutation import spread


@dataclass(frozen=True)
class PermuteChannels(Pass):
    """Reorder channels, the residual width, or both, for a pattern and a score.

    `rounds` bounds the search for each axis. Axes whose size M does not divide, that are pinned, or that no
    target reads stay.
    """

    name: ClassVar[str] = "permute-channels"
    moves: ClassVar[Moves] = ROUNDING
    of: tuple[Literal["channels", "hidden"], ...] = ("channels", "hidden")
    pattern: str = "2:4"
    score: Literal["magnitude", "wanda", "ria"] = "ria"
    rounds: int = 8
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Needs statistics when the score does; they are void afterwards, and so are chosen masks."""
        needs = ["stats"] if self.score != "magnitude" else []
        bars = ["mask.weights", "row-scales", "quantizers", "lora", "slorb"]
        return effect(needs=needs, drops=["stats"], bars=bars)

    def check(self, program: Program) -> None:
        """The pattern must be one, and there must be targets."""
        Pattern.parse(self.pattern)
        targeted(program, self.targets, self.ignore)
        if self.rounds < 1:
            raise OptionError(f"rounds={self.rounds} must be at least 1")

    def rewrite(self, program: Program, context: Context) -> int:
        """Reorder one axis after the other; returns how many moved."""
        context.notes.extend(left_whole(program, experts=True))
        views = {view.weight: view for view in targeted(program, self.targets, self.ignore)}
        pattern, analysis = Pattern.parse(self.pattern), analyse(program)
        found = [group for kind in self.of for group in prunable(analysis, kind)]
        read = [(group, _readers(group, views)) for group in found if isinstance(group, Group)]
        read = [(g, readers) for g, readers in read if readers and g.size % pattern.m == 0]
        if not read:
            raise OptionError(
                f"no target reads {' or '.join(self.of)} that can be put in another order for {pattern}; "
                "widen the targets"
            )
        context.progress.start(self.name, len(read))
        orders = {}
        for group, readers in read:
            order = spread(self._scores(program, readers), pattern, self.rounds)
            if not torch.equal(order, torch.arange(group.size)):
                orders[group.key] = order
            context.progress.advance()
        reorder(program, orders)
        return len(orders)

    def _scores(self, program: Program, readers: Sequence[Linear]) -> Tensor:
        """Scores `[rows, size]` of all weights that read an axis; matrices one below the other."""
        return torch.cat([self._score(program, view) for view in readers])

    def _score(self, program: Program, view: Linear) -> Tensor:
        weight = out_in(view, composed_weight(program, view)).detach().flatten(0, -2)
        if self.score == "magnitude":
            return scores.magnitude(weight)
        seen = statistics_of(program, view)
        if self.score == "wanda":
            return scores.wanda(weight, seen.square, seen.tokens)
        return scores.ria(weight, seen.square)


def _readers(group: Group, views: dict[str, Linear]) -> list[Linear]:
    """The targets whose input features are the group's indices, one to one."""
    return [
        views[consumer.weight]
        for consumer in group.consumers
        if consumer.weight in views and consumer.axis.root() is group.leaf.root()
    ]
