"""The residual width: one mask for the whole program, at every linear and norm that reads it."""

from collections.abc import Sequence

import torch

from sparsify.errors import OptionError
from sparsify.ir.axes.analysis import Analysis
from sparsify.ir.axes.groups import Group, groups
from sparsify.ir.axes.shrink.keep import Keep
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.width_mask import add_width_mask, drop_width_mask, width_masks
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import group_mask
from sparsify.ir.views.linear import Linear
from sparsify.select.importance import OF_GRADIENTS
from sparsify.select.kinds.cut import cut
from sparsify.select.kinds.indices import choose_indices
from sparsify.select.kinds.kind import Choice, Kind, Units


class Hidden(Kind):
    """`linear(x, W)  ->  linear(x * mask, W)` and `norm(x)  ->  masked_norm(x, mask)`, mask `[hidden]`."""

    name = family = "hidden"
    scores = ("magnitude", "activation", *sorted(OF_GRADIENTS))
    of_statistics = frozenset({"activation"})
    of_data = OF_GRADIENTS

    def check(self, program: Program, views: Sequence[Linear]) -> None:
        """Refuse where every width is pinned."""
        _widths(analyse(program))

    def add(self, program: Program, views: Sequence[Linear]) -> int:
        """Mask every residual width, whatever the targets."""
        found = _widths(analyse(program))
        for key in [group.key for group in found]:
            analysis = analyse(program)
            add_width_mask(program, analysis, _width_at(analysis, key[0]))
        return len(found)

    def choose(
        self, program: Program, names: Sequence[str], views: Sequence[Linear], choice: Choice
    ) -> int:
        """The same fraction of every width."""
        analysis = analyse(program)
        found = {mask.path: _width_at(analysis, mask.weight) for mask in width_masks(program)}
        return choose_indices(program, found, choice.by, choice.amount, self.name)

    def most(self, program: Program) -> int:
        """The largest width; 0 where none may shrink."""
        return max((units.size for units in self.units(program)), default=0)

    def units(self, program: Program) -> list[Units]:
        """The features of every width."""
        stand = {mask.path for mask in width_masks(program)}
        found = []
        for group in _free_widths(analyse(program)):
            path = group_mask(group.key[0], self.name)
            index = {path: torch.arange(group.size)} if path in stand else {}
            found.append(Units(group.key[0], group.size, 1, index))
        return found

    def remove(self, program: Program) -> int:
        """Slice every tensor that carries a masked width."""
        masks = width_masks(program)
        for mask in masks:
            kept = torch.nonzero(program.tensor(mask.path)).flatten().tolist()
            drop_width_mask(program, mask)
            keep = Keep()
            keep.group(_width_at(analyse(program), mask.weight), kept)
            cut(program, keep)
        return len(masks)


def _free_widths(analysis: Analysis) -> list[Group]:
    """The residual widths that nothing pins."""
    found = [group for group in groups(analysis) if group.kind == "hidden"]
    return [group for group in found if group.prunable and group.consumers]


def _widths(analysis: Analysis) -> list[Group]:
    """As `_free_widths`; OptionError when there are none."""
    free = _free_widths(analysis)
    if not free:
        found = [group for group in groups(analysis) if group.kind == "hidden"]
        why = "; ".join(found[0].pins[:2]) if found else "there is no residual sum x + f(x)"
        raise OptionError(f"the program has no prunable hidden size: {why}")
    return free


def _width_at(analysis: Analysis, path: str) -> Group:
    """The residual width whose first tensor is at a path."""
    return next(group for group in _widths(analysis) if group.key[0] == path)
