"""Single weights: a mask like W that multiplies it."""

from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor

from sparsify.errors import OptionError
from sparsify.ir.features.composed import take_out
from sparsify.ir.features.weight_mask import add_mask, masked_linears
from sparsify.ir.graph import sweep
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear, products
from sparsify.ir.views.targets import refuse_shared
from sparsify.select.gradients import weight_gradients
from sparsify.select.importance import OF_STATISTICS
from sparsify.select.kinds.kind import Choice, Kind
from sparsify.select.one_shot import Method, OneShot, prune_linears
from sparsify.select.weights import Target, choose_together, masked, store_masks, targets_of
from sparsify.tensors.masks import zeroed


class Weights(Kind):
    """`linear(x, W)  ->  linear(x, W * mask)`."""

    name = family = "weights"
    scores = (*get_args(Method), "taylor")
    of_statistics = frozenset(get_args(Method)) - {"magnitude"}
    of_data = frozenset({"taylor"})

    def masked_weights(self, views: Sequence[Linear]) -> frozenset[str]:
        """Those of the linears themselves."""
        return frozenset(view.weight for view in views)

    def refuse_score(self, score: str) -> None:
        """Raise OptionError for a score of groups, with the one that is like it for weights."""
        if score not in self.scores:
            instead = "wanda" if score in OF_STATISTICS else "taylor"
            raise OptionError(f"score={score} is for channels and heads; use {instead} for weights")

    def check(self, program: Program, views: Sequence[Linear]) -> None:
        """Refuse a weight that another kind of op reads as well."""
        refuse_shared(program, views)

    def add(self, program: Program, views: Sequence[Linear]) -> int:
        """Multiply every weight by a mask of ones."""
        for view in views:
            mask = torch.ones_like(program.tensor(view.weight), dtype=torch.bool)
            add_mask(program, view.weight, mask, view)
        return len({view.weight for view in views})

    def choose(
        self, program: Program, names: Sequence[str], views: Sequence[Linear], choice: Choice
    ) -> int:
        """Rank weights by row, by linear or over all of them; or let a method move those it keeps."""
        chosen = {view.weight for view in views}
        found = {v.weight: v for v in masked(v for v in products(program) if v.weight in chosen)}
        targets = targets_of(program, found, choice.share)
        if choice.share is not None and (
            choice.by.name == "taylor" or choice.amount.scope == "global"
        ):
            masks = self._together(program, found, choice, choice.share)
        else:
            masks = self._one_by_one(program, found, choice, targets)
        store_masks(program, found, masks, targets)
        return len(masks)

    def fold(self, program: Program) -> int:
        """`W' = W * mask`; OptionError for a branch under the mask."""
        folded = set()
        for view in masked_linears(program):
            assert view.mask is not None
            refuse_branch(view)
            if view.weight not in folded:
                weight, mask = program.tensor(view.weight), program.tensor(view.mask)
                with torch.no_grad():
                    weight.copy_(zeroed(weight, mask))
                folded.add(view.weight)
            take_out(program, view, mask=True)
        sweep(program)
        return len(folded)

    def _together(
        self, program: Program, found: Mapping[str, Linear], choice: Choice, target: Target
    ) -> dict[str, Tensor]:
        by, scope = choice.by, choice.amount.scope
        gradients: Mapping[str, Tensor] = {}
        if by.name == "taylor":
            assert by.data is not None
            gradients = weight_gradients(program, by.data, by.indices, by.batch)
        wide = "global" if scope == "auto" else scope
        return choose_together(program, found, by.name, gradients, target, wide)  # type: ignore[arg-type]

    def _one_by_one(
        self,
        program: Program,
        found: Mapping[str, Linear],
        choice: Choice,
        targets: Mapping[str, Target],
    ) -> dict[str, Tensor]:
        choice.start(len(found))
        how = {
            path: OneShot(choice.by.name, one, choice.amount.scope, choice.damping)  # type: ignore[arg-type]
            for path, one in targets.items()
        }
        return prune_linears(program, found, how, choice.advance, scales=choice.scales)


def refuse_branch(view: Linear) -> None:
    """Raise OptionError for a linear whose mask lies over a low-rank branch."""
    if view.branch is not None:
        raise OptionError(f"@{view.weight} has a branch under its mask; put fold-lora first")
