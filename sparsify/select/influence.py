"""Block influence: how far a residual block turns the stream that runs through it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.modes import set_training
from sparsify.ir.program import Program
from sparsify.select.statistics import kept_rows, padding
from sparsify.tensors.moments import accumulate_cosine
from sparsify.train.data import Data, batches


@dataclass(frozen=True)
class Span:
    """The nodes before and behind a residual block; `adds` when `y` is a term yet to be added to `x`."""

    x: fx.Node
    y: fx.Node
    adds: bool = False


def block_influence(
    program: Program, spans: Mapping[str, Span], data: Data, indices: Sequence[int], batch: int
) -> dict[str, float]:
    """`1 - mean_t cos(x_t, y_t)` of every block by its name, over the tokens that are no padding.

    Source: ShortGPT (2403.03853), section 3.2; the layer importance of Minitron (2407.14679).
    """
    watcher = _Watcher(program, spans)
    set_training(program.module, False)
    with torch.no_grad():
        for part in batches(data, indices, batch):
            watcher.watch(part)
    return {
        name: 1.0 - float(total) / max(1, watcher.tokens[name])
        for name, total in watcher.totals.items()
    }


class _Watcher(fx.Interpreter):
    """Runs a program and compares what enters blocks with what leaves them."""

    def __init__(self, program: Program, spans: Mapping[str, Span]) -> None:
        super().__init__(program.module)
        self._program, self._spans = program, spans
        self._entering = {span.x for span in spans.values()}
        self._seen: dict[fx.Node, Tensor] = {}
        self._mask: Tensor | None = None
        self.totals = {name: torch.zeros((), dtype=torch.float64) for name in spans}
        self.tokens = dict.fromkeys(spans, 0)

    def watch(self, batch: Mapping[str, Tensor]) -> None:
        """Run one batch of inputs `[batch, length]`."""
        inputs = self._program.complete(batch)
        self._mask = padding(inputs)
        self._seen.clear()
        self.run(*inputs.values())

    def run_node(self, n: fx.Node) -> Any:
        """Interpret a node; blocks that end at it are compared with what they began from."""
        value = super().run_node(n)
        if n in self._entering:
            self._seen[n] = value
        for name, span in self._spans.items():
            if span.y is n:
                x = self._seen[span.x]
                after = x + value.reshape(x.shape) if span.adds else value
                rows = kept_rows(x, self._mask)
                total = self.totals[name]
                self.totals[name] = accumulate_cosine(
                    total, rows.cpu(), kept_rows(after, self._mask).cpu()
                )
                self.tokens[name] += rows.shape[0]
        return value
