"""Statistics of activations: the buffers of a probe, filled by interpreting the graph."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.errors import SparsifyError
from sparsify.ir.names import probe as probe_path
from sparsify.ir.program import Program
from sparsify.ir.views import Linear, Probe, probe_at, probe_behind
from sparsify.tensors import scores
from sparsify.tensors.moments import (
    accumulate_gram,
    accumulate_square_sum,
    add_upper_gram,
    mirrored,
)

# The order in which a probe node reads its buffers; `gram` may be missing.
KINDS = ("count", "total", "square", "gram")


@dataclass(frozen=True)
class Statistics:
    """Sums over tokens of an activation `x [tokens, features]`.

    `tokens` their number; `total [features]` sum of x; `square [features]` sum of x squared; `gram
    [features, features]` sum of x x^T, where it was asked for.
    """

    tokens: int
    total: Tensor
    square: Tensor
    gram: Tensor | None


class Sums:
    """Statistics of one activation, added up batch by batch outside a graph."""

    def __init__(self, size: int, *, gram: bool, device: torch.device | None = None) -> None:
        zeros = partial(torch.zeros, dtype=torch.float32, device=device)
        self.tokens, self.total, self.square = 0, zeros(size), zeros(size)
        self.gram = zeros(size, size) if gram else None

    def add(self, rows: Tensor) -> None:
        """Add `rows [tokens, features]`, of any precision."""
        rows = rows.to(torch.float32)
        self.tokens += rows.shape[0]
        self.total += rows.sum(0)
        if self.gram is None:
            self.square = accumulate_square_sum(self.square, rows)
        else:
            add_upper_gram(self.gram, rows)

    def statistics(self) -> Statistics:
        """What was added so far."""
        if self.gram is None:
            return Statistics(self.tokens, self.total, self.square, None)
        gram = mirrored(self.gram)
        return Statistics(self.tokens, self.total, gram.diagonal().clone(), gram)


def kept_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """An activation `x [..., features]` as `[tokens, features]`, padded tokens left out.

    `mask [batch, length]` is the attention mask, None when nothing is padded; an activation that has
    not one row a token is taken whole.
    """
    rows = x.detach().reshape(-1, x.shape[-1])
    if mask is None or mask.numel() != rows.shape[0]:
        return rows
    return rows[mask.reshape(-1).bool()]


def padding(inputs: Mapping[str, Tensor]) -> Tensor | None:
    """The attention mask of a batch; None when there is none, or it leaves nothing out."""
    mask = inputs.get("attention_mask")
    return None if mask is None or bool(mask.all()) else mask


def empty_statistics(path: str, size: int, *, gram: bool) -> dict[str, Tensor]:
    """Fresh buffers of a probe named after a weight, by path, in the order of `KINDS`."""
    shapes: dict[str, tuple[int, ...]] = {"count": (), "total": (size,), "square": (size,)}
    if gram:
        shapes["gram"] = (size, size)
    return {
        probe_path(path, kind): torch.zeros(
            shape, dtype=torch.int64 if kind == "count" else torch.float32
        )
        for kind, shape in shapes.items()
    }


def statistics_of(program: Program, x: fx.Node, where: str) -> Statistics:
    """The statistics of the probe that a node is, or that stands before it.

    Raises SparsifyError when there is none, or when `calibrate` has not filled it.
    """
    probe = probe_behind(x)
    if probe is None:
        raise SparsifyError(
            f"the input of @{where} has no probe; widen the targets of insert-probes"
        )
    values = [program.tensor(path) for path in probe.statistics]
    tokens = int(values[0])
    if tokens == 0:
        raise SparsifyError(f"the probe at the input of @{where} saw no token; calibrate first")
    return Statistics(tokens, values[1], values[2], values[3] if len(values) > 3 else None)


class Collector(fx.Interpreter):
    """Runs a program and adds what flows through its probes to their buffers.

    Padded tokens (attention mask 0) are left out wherever the probed activation has one row a
    token.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program.module)
        self._program = program
        self._probes = {p.node: p for n in program.graph.nodes if (p := probe_at(n)) is not None}
        self._kept: Tensor | None = None

    def reset(self) -> None:
        """Set every statistic to zero."""
        for probe in self._probes.values():
            for path in probe.statistics:
                self._program.tensor(path).zero_()

    def collect(self, batch: Mapping[str, Tensor]) -> None:
        """Run one batch of inputs `[batch, length]`."""
        inputs = self._program.complete(batch)
        self._kept = padding(inputs)
        self.run(*inputs.values())

    def run_node(self, n: fx.Node) -> Any:
        """Interpret a node; a probe's statistics grow by what it sees."""
        value = super().run_node(n)
        if n in self._probes:
            self._add(self._probes[n], value)
        return value

    def _add(self, probe: Probe, x: Tensor) -> None:
        rows = kept_rows(x, self._kept)
        count, total, square, *gram = (self._program.tensor(path) for path in probe.statistics)
        count.add_(rows.shape[0])
        total.add_(rows.sum(0, dtype=total.dtype))
        square.copy_(accumulate_square_sum(square, rows))
        for buffer in gram:
            buffer.copy_(accumulate_gram(buffer, rows))


def by_wanda(program: Program) -> Callable[[Linear, Tensor], Tensor]:
    """Wanda's score `[out, in]` of a weight `[out, in]` of a linear, by the norms its probe measured."""

    def score(linear: Linear, weight: Tensor) -> Tensor:
        found = statistics_of(program, linear.x, linear.weight)
        return scores.wanda(weight, found.square, found.tokens)

    return score
