"""Block influence: how far a residual block turns the stream that runs through it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsify import ranks
from sparsify.data.sequences import Data
from sparsify.data.shares import own_batches
from sparsify.ir.axes.residual import Block
from sparsify.ir.program import Program
from sparsify.ir.run.values import Values
from sparsify.select.collector import kept_rows, padding
from sparsify.tensors.moments import accumulate_cosine


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
    watch = Values(program, [node for span in spans.values() for node in (span.x, span.y)])
    totals = {name: torch.zeros((), dtype=torch.float64) for name in spans}
    tokens = dict.fromkeys(spans, 0)
    for part in own_batches(data, indices, batch):
        values, mask = watch.of(part), padding(program.complete(part))
        for name, span in spans.items():
            x, y = values[span.x], values[span.y]
            rows = kept_rows(x, mask)
            after = kept_rows(x + y.reshape(x.shape) if span.adds else y, mask)
            totals[name] = accumulate_cosine(totals[name], rows.cpu(), after.cpu())
            tokens[name] += rows.shape[0]
    sums = ranks.totals(*map(float, totals.values()), *tokens.values())
    turns, seen = sums[: len(spans)], sums[len(spans) :]
    return {n: 1.0 - turn / max(1, size) for n, turn, size in zip(spans, turns, seen, strict=True)}


def influences(
    program: Program, found: Mapping[str, Block], data: Data, indices: Sequence[int], batch: int
) -> Tensor:
    """The influence of residual blocks, in their order; `[blocks]`."""
    spans = {path: Span(b.x, b.y, b.user is not None) for path, b in found.items()}
    turns = block_influence(program, spans, data, indices, batch)
    return torch.tensor([turns[path] for path in found])
