"""What is summed of the inputs of the linears behind a cut."""

import torch
from torch import Tensor

from sparsify.ir.program import Program
from sparsify.ir.run.stages import Stage, Values
from sparsify.ir.views.linear import feature_size
from sparsify.select.collector import kept_rows, rows_of_experts
from sparsify.select.statistics import Statistics, Sums


class StageSums:
    """The sums of the input of each matrix behind a cut: one, or those of the experts."""

    def __init__(self, program: Program, stage: Stage, device: torch.device, *, gram: bool) -> None:
        view = stage.linears[0]
        self.stage, self.stacked = stage, view.stacked
        count = len(program.tensor(view.weight)) if view.stacked else 1
        size = feature_size(stage.x)
        self.each = [Sums(size, gram=gram, device=device) for _ in range(count)]

    def add(self, values: Values, mask: Tensor | None) -> None:
        """Add a batch by the values that cross the cut; `mask` is that of its tokens, as in `kept_rows`."""
        x = values[self.stage.x.name]
        if self.stacked:
            ends, tokens = (
                None if node is None else values[node.name]
                for node in (self.stage.ends, self.stage.tokens)
            )
            parts = rows_of_experts(x, ends, tokens, mask)
        else:
            parts = [kept_rows(x, mask)]
        for own, rows in zip(self.each, parts, strict=True):
            own.add(rows)

    def add_up(self) -> None:
        """Put what all ranks have added in the place of what this one has."""
        for own in self.each:
            own.add_up()

    def statistics(self) -> list[Statistics]:
        """What was added so far, of each matrix."""
        return [own.statistics() for own in self.each]
