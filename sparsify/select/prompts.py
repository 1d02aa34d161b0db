"""First rows of a soft prompt, and how well a prompt does on data."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sparsify import ranks
from sparsify.data.sequences import Data
from sparsify.data.shares import own_batches
from sparsify.ir.program import Program
from sparsify.ir.views.embedding import Table, rounded_table
from sparsify.train.losses import TaskLoss

Init = Literal["words", "normal"]


def drawn_rows(
    program: Program, table: Table, count: int, init: Init, generator: torch.Generator
) -> Tensor:
    """Rows `[count, d]`: those of drawn ids of the table, or normal ones of its mean and deviation."""
    rows = rounded_table(program, table)
    if init == "words":
        return rows[torch.randint(len(rows), (count,), generator=generator)].clone()
    noise = torch.randn(count, rows.shape[1], generator=generator).to(rows)
    return noise * rows.std() + rows.mean()


@torch.no_grad()
def loss_of(program: Program, data: Data, indices: Sequence[int], batch: int) -> float:
    """The mean task loss of a label over some sequences, in nats."""
    task = TaskLoss(program)
    total = items = 0.0
    for part in own_batches(data, indices, batch):
        count = task.items(part)
        inputs = {name: value for name, value in part.items() if name != "labels"}
        total += float(task(program.run(inputs), part)) * count if count else 0.0
        items += count
    total, items = ranks.totals(total, items)
    return total / max(items, 1)
