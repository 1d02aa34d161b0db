"""Channels and attention heads: a mask where the coupled axis is taken in."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from sparsify.errors import OptionError, SparsifyError
from sparsify.ir.axes.groups import Heads
from sparsify.ir.axes.shrink.choice import expand_index
from sparsify.ir.axes.shrink.keep import Keep
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.group_mask import (
    add_group_mask,
    expand_group_mask,
    group_masks,
)
from sparsify.ir.graph import redirect, sweep
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear, effective_weight, out_in, product_at
from sparsify.ir.views.stacks import row_multiple
from sparsify.select.groups import MaskedAxis, keep, of_one_axis, prunable, sites, unit_cost
from sparsify.select.importance import OF_DATA, OF_STATISTICS, gather, importance
from sparsify.select.kinds.cut import cut
from sparsify.select.kinds.kind import Choice, Kind, Units
from sparsify.select.kinds.weights import refuse_branch
from sparsify.tensors.masks import zeroed


class Coupled(Kind):
    """`linear(x, W)  ->  linear(x * expand(mask), W)`, mask `[channels]` or `[query heads]`."""

    family = "coupled"
    scores = ("magnitude", "taylor", *sorted(OF_STATISTICS | OF_DATA))
    of_statistics = OF_STATISTICS
    of_data = OF_DATA
    late = True

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, program: Program, views: Sequence[Linear]) -> None:
        """Refuse where no axis may shrink, or no target takes one in."""
        found = prunable(analyse(program), self.name)
        if not found:
            raise OptionError(
                f"the program has no prunable {self.name}; `sparsify-fx show MODEL --axes` says why"
            )
        readers = [consumer.weight for group in found for consumer in group.consumers]
        if {view.weight for view in views}.isdisjoint(readers):
            raise OptionError(f"no target takes prunable {self.name} in, as @{readers[0]} does")

    def add(self, program: Program, views: Sequence[Linear]) -> int:
        """Multiply the inputs of every target by a mask of the axis it takes in."""
        chosen, places = {view.weight for view in views}, 0
        for found in prunable(analyse(program), self.name):
            for consumer in found.consumers:
                view = product_at(program, consumer.node)
                if view is not None and view.weight in chosen:
                    index = expand_index(consumer, found)
                    add_group_mask(program, view, self.name, found.size, index)
                    places += 1
        return places

    def choose(
        self, program: Program, names: Sequence[str], views: Sequence[Linear], choice: Choice
    ) -> int:
        """Rank the units of each place, or of all places and kinds together."""
        analysis, present = analyse(program), group_masks(program)
        chosen, found = {view.weight for view in views}, list[MaskedAxis]()
        for kind in names:
            found += [s for s in sites(analysis, present, kind) if s.mask.linear.weight in chosen]
            if not found or found[-1].mask.kind != kind:
                raise OptionError(
                    f"no target has a mask of {kind}; name the linears that take them in"
                )
        by, amount = choice.by, choice.amount
        evidence = gather(program, found, by)
        scored = of_one_axis([importance(program, site, by, evidence) for site in found], found)
        costs = [unit_cost(program, site, amount.rule) for site in found]
        masks = keep(scored, found, amount, costs)
        with torch.no_grad():
            for site, mask in zip(found, masks, strict=True):
                program.tensor(site.mask.path).copy_(mask)
        return len(masks)

    def most(self, program: Program) -> int:
        """The size of the largest axis."""
        return max((group.size for group in prunable(analyse(program), self.name)), default=0)

    def units(self, program: Program) -> list[Units]:
        """Channels, or KV groups; query heads where one group serves all of them."""
        analysis, found = analyse(program), dict[object, Units]()
        for of in prunable(analysis, self.name):
            width = of.rep_size if isinstance(of, Heads) and of.kv is not None else 1
            found[of.key] = Units(of.consumers[0].weight, of.size // width, width, {})
        for site in sites(analysis, group_masks(program), self.name):
            units = found[site.of.key]
            entries = torch.arange(units.size).repeat_interleave(units.width)
            index = {**units.index, site.mask.path: entries}
            found[site.of.key] = replace(units, index=index)
        return list(found.values())

    def fold(self, program: Program) -> int:
        """`W'_ij = W_ij mask_j`; the zeros keep their place and cost. OptionError for a branch."""
        found = [mask for mask in group_masks(program) if mask.kind == self.name]
        for mask in found:
            view = mask.linear
            refuse_branch(view)
            stored = program.tensor(view.weight)
            weight = out_in(view, effective_weight(program, view))
            kept = expand_group_mask(program, mask, weight.shape[-1])
            with torch.no_grad():
                stored.copy_(out_in(view, zeroed(weight, kept)))
            redirect(mask.product, mask.x)
        sweep(program)
        return len(found)

    def remove(self, program: Program) -> int:
        """Slice every tensor of the masked axes; SparsifyError where masks of one axis disagree."""
        found = sites(analyse(program), group_masks(program), self.name)
        keep_, kept_of = Keep(), dict[object, list[int]]()
        for site in found:
            kept = torch.nonzero(program.tensor(site.mask.path)).flatten().tolist()
            if kept_of.setdefault(site.of.key, kept) != kept:
                raise SparsifyError(
                    f"@{site.mask.path} disagrees with another mask of the same {self.name}"
                )
            _refuse_uneven(program, site, len(kept))
            if isinstance(site.of, Heads):
                keep_.heads(site.of, kept)
            else:
                keep_.group(site.of, kept)
        cut(program, keep_)
        for mask in [m for m in group_masks(program) if m.kind == self.name]:
            redirect(mask.product, mask.x)
        sweep(program)
        return len(found)


def _refuse_uneven(program: Program, site: MaskedAxis, kept: int) -> None:
    """Raise OptionError for a width that torch's grouped product of half precision does not take."""
    multiple = row_multiple(program, site.mask.linear)
    if kept % multiple:
        where = site.mask.linear.weight
        raise OptionError(
            f"{kept} channels of experts would be left at @{where}, and torch multiplies groups of "
            f"rows in this precision by multiples of {multiple} alone; choose them with multiple={multiple}"
        )
