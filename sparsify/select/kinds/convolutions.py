"""Single weights of convolutions: a mask like W that multiplies it."""

from collections.abc import Sequence

import torch

from sparsify.errors import OptionError
from sparsify.ir.features.convolution_mask import (
    add_convolution_mask,
    drop_convolution_mask,
    masked_convolutions,
)
from sparsify.ir.program import Program
from sparsify.ir.views.convolution import convolution_at
from sparsify.ir.views.linear import Linear, consumers
from sparsify.ir.views.targets import targeted_convolutions
from sparsify.select.kinds.kind import Choice, Kind
from sparsify.tensors.masks import keep_across, keep_global, keep_rows, zeroed
from sparsify.tensors.scores import magnitude


class Convolutions(Kind):
    """`conv(x, W)  ->  conv(x, W * mask)`, W `[out, in / groups, *window]`."""

    name = family = "convolutions"
    scores = ("magnitude",)

    def targeted(
        self, program: Program, targets: Sequence[str], ignore: Sequence[str]
    ) -> list[Linear]:
        """The convolutions that globs select; OptionError when one of them matches nothing."""
        return targeted_convolutions(program, targets, ignore)

    def refuse_score(self, score: str) -> None:
        """Raise OptionError for all but magnitude: nothing else is known of the inputs of a window."""
        if score not in self.scores:
            raise OptionError(f"score={score} is not for convolutions; choose magnitude")

    def check(self, program: Program, views: Sequence[Linear]) -> None:
        """Refuse a weight that another kind of op reads as well."""
        for view in views:
            # A mask that is there already is refused by the feature.
            readers = consumers(program, view.weight) if view.mask is None else []
            if any(convolution_at(program, node) is None for node in readers):
                raise OptionError(
                    f"@{view.weight} is no weight of convolutions alone, so that a mask on it could not be "
                    "folded; leave it out of targets"
                )

    def add(self, program: Program, views: Sequence[Linear]) -> int:
        """Multiply every weight by a mask of ones."""
        for view in views:
            add_convolution_mask(program, view)
        return len({view.weight for view in views})

    def choose(
        self, program: Program, names: Sequence[str], views: Sequence[Linear], choice: Choice
    ) -> int:
        """Rank the weights of each convolution, of each of its outputs, or of all of them together."""
        found = {view.weight: view.mask for view in views if view.mask is not None}
        if not found:
            raise OptionError("no target has a mask of convolutions; widen those of insert-masks")
        scores = [magnitude(program.tensor(path).detach()) for path in found]
        scope, sparsity = choice.amount.scope, choice.amount.sparsity
        if scope == "global":
            masks = keep_across(scores, sparsity)
        elif scope == "row":
            masks = [keep_rows(s.flatten(1), sparsity).view_as(s) for s in scores]
        else:
            masks = [keep_global(score, sparsity) for score in scores]
        with torch.no_grad():
            for path, mask in zip(found.values(), masks, strict=True):
                program.tensor(path).copy_(mask)
        return len(masks)

    def fold(self, program: Program) -> int:
        """`W' = W * mask`."""
        views = masked_convolutions(program)
        for view in views:
            assert view.mask is not None
            weight, mask = program.tensor(view.weight), program.tensor(view.mask)
            with torch.no_grad():
                weight.copy_(zeroed(weight, mask))
        for view in views:
            drop_convolution_mask(program, view)
        return len({view.weight for view in views})
