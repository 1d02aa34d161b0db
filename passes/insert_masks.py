"""insert-masks: boolean keep-masks, all true at first.

    weights:          linear(x, W)  ->  linear(x, W * mask)              mask like W
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
from typing import ClassVar, Literal

import torch

from sparsify.engine.contract import NOTHING, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.axes.analysis import Router
from sparsify.ir.axes.residual import Block, blocks
from sparsify.ir.axes.shrink.choice import expand_index
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.block_mask import KINDS, add_block_mask
from sparsify.ir.features.expert_mask import add_expert_mask
from sparsify.ir.features.group_mask import add_group_mask
from sparsify.ir.features.weight_side import add_mask
from sparsify.ir.features.width_mask import add_width_mask
from sparsify.ir.program import Program
from sparsify.ir.views.linear import product_at
from sparsify.ir.views.targets import refuse_shared, targeted
from sparsify.select.channels_and_heads import routers, width_at, widths
from sparsify.select.groups import prunable

Kind = Literal["weights", "channels", "heads", "experts", "layers", "blocks", "hidden"]


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
        grouped = self._chosen(program) if set(self.of) != {"weights"} else set()
        if len(set(self.of)) < len(self.of):
            raise OptionError(f"of={','.join(self.of)} names one kind twice")
        for kind in self.of:
            if kind == "weights":
                refuse_shared(program, targeted(program, self.targets, self.ignore))
            elif kind in KINDS:
                _blocks(program, kind, grouped)
            elif kind == "experts":
                _routers(program, grouped)
            elif kind == "hidden":
                widths(analyse(program))
            else:
                _check_groups(program, kind, grouped)

    def featured_weights(self, program: Program) -> Mapping[str, frozenset[str]]:
        """The weights that get a mask of their own."""
        if "weights" not in self.of:
            return {}
        views = targeted(program, self.targets, self.ignore)
        return {"mask.weights": frozenset(view.weight for view in views)}

    def rewrite(self, program: Program, context: Context) -> int:
        """Insert every mask; returns how many."""
        return sum(self._insert(program, kind) for kind in self.of)

    def _insert(self, program: Program, kind: str) -> int:
        if kind == "weights":
            return self._weights(program)
        chosen = self._chosen(program)
        if kind == "hidden":
            found_widths = widths(analyse(program))
            for key in [group.key for group in found_widths]:
                analysis = analyse(program)
                add_width_mask(program, analysis, width_at(analysis, key[0]))
            return len(found_widths)
        if kind == "experts":
            routers = _routers(program, chosen)
            for router in routers:
                add_expert_mask(program, router)
            return len(routers)
        if kind in KINDS:
            found = _blocks(program, kind, chosen)
            # The last first: what a block starts from is then still the block before it, mask and all.
            for block in reversed(found):
                add_block_mask(program, block)
            return len(found)
        return self._groups(program, kind, chosen)

    def _chosen(self, program: Program) -> set[str]:
        views = targeted(program, self.targets, self.ignore, experts=True)
        return {view.weight for view in views}

    def _weights(self, program: Program) -> int:
        views = targeted(program, self.targets, self.ignore)
        for view in views:
            mask = torch.ones_like(program.tensor(view.weight), dtype=torch.bool)
            add_mask(program, view.weight, mask, view)
        return len({view.weight for view in views})

    def _groups(self, program: Program, kind: str, chosen: set[str]) -> int:
        places = 0
        for found in prunable(analyse(program), kind):
            for consumer in found.consumers:
                view = product_at(program, consumer.node)
                if view is not None and view.weight in chosen:
                    index = expand_index(consumer, found)
                    add_group_mask(program, view, kind, found.size, index)
                    places += 1
        return places


def _routers(program: Program, chosen: set[str]) -> list[Router]:
    """The routers among the targets whose experts may go; OptionError when there are none."""
    analysis = analyse(program)
    found = routers(analysis)
    if not found:
        raise OptionError(
            "the program has no prunable experts; `sparsify-fx show MODEL --axes` says why"
        )
    targets = [router for router in found if router.weight in chosen]
    if not targets:
        raise OptionError(f"no target is a router, as @{found[0].weight} is")
    return targets


def _blocks(program: Program, kind: str, chosen: set[str]) -> list[Block]:
    """The layers or blocks that hold a target; OptionError when there are none."""
    found = blocks(analyse(program), kind)
    if not found:
        raise OptionError(f"the program has no residual sum x + f(x), so no {kind} can go")
    targets = [block for block in found if not chosen.isdisjoint(block.weights)]
    if not targets:
        raise OptionError(f"no target lies in one of the {kind}, as @{found[0].weights[-1]} does")
    return targets


def _check_groups(program: Program, kind: str, chosen: set[str]) -> None:
    found = prunable(analyse(program), kind)
    if not found:
        raise OptionError(
            f"the program has no prunable {kind}; `sparsify-fx show MODEL --axes` says why"
        )
    readers = [consumer.weight for group in found for consumer in group.consumers]
    if chosen.isdisjoint(readers):
        raise OptionError(f"no target takes prunable {kind} in, as @{readers[0]} does")
