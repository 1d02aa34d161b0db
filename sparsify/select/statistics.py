"""Statistics of activations: the buffers of a probe, filled by interpreting the graph."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from sparsify import ranks
from sparsify.errors import SparsifyError
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import probe as probe_path
from sparsify.ir.views.linear import Linear
from sparsify.ir.views.probe import Probe, probe_at, probe_behind
from sparsify.select.routes import add_routes
from sparsify.tensors import scores
from sparsify.tensors.moments import (
    accumulate_gram,
    accumulate_level,
    accumulate_spread,
    add_upper_gram,
    mirrored,
)


@dataclass(frozen=True)
class Statistics:
    """What is known of an activation `x [tokens, features]`.

    `tokens` their number; `mean [features]`; `scatter [features]` sum of (x - mean)^2; `level
    [features]` sum over sequences of the squared mean size in each; `gram [features, features]` sum of
    x x^T, where it was asked for.
    """

    tokens: int
    mean: Tensor
    scatter: Tensor
    level: Tensor | None
    gram: Tensor | None

    @property
    def square(self) -> Tensor:
        """Sum over tokens of x squared, `[features]`."""
        return self.scatter + self.tokens * self.mean.square()

    @property
    def variance(self) -> Tensor:
        """Variance over tokens, `[features]`."""
        return self.scatter / self.tokens


class Sums:
    """Statistics of one activation, added up batch by batch outside a graph; without its levels."""

    def __init__(self, size: int, *, gram: bool, device: torch.device | None = None) -> None:
        zeros = partial(torch.zeros, dtype=torch.float32, device=device)
        self.tokens, self.mean, self.scatter = 0, zeros(size), zeros(size)
        self.gram = zeros(size, size) if gram else None

    def add(self, rows: Tensor) -> None:
        """Add `rows [tokens, features]`, of any precision."""
        rows = rows.to(torch.float32)
        spread = accumulate_spread(self.tokens, self.mean, self.scatter, rows)
        self.tokens, self.mean, self.scatter = spread
        if self.gram is not None:
            add_upper_gram(self.gram, rows)

    def add_up(self) -> None:
        """Put what all ranks have added in the place of what this one has."""
        count = torch.tensor(self.tokens)
        pool(count, self.mean, self.scatter)
        self.tokens = int(count)
        if self.gram is not None:
            ranks.add_up(self.gram)

    def statistics(self) -> Statistics:
        """What was added so far."""
        gram = None if self.gram is None else mirrored(self.gram)
        return Statistics(self.tokens, self.mean, self.scatter, None, gram)


def pool(count: Tensor, mean: Tensor, scatter: Tensor) -> None:
    """Put the statistics of the tokens of all ranks in the place of those of one, in place.

        n = sum n_r,   m = sum n_r m_r / n,   s = sum s_r + n_r (m_r - m)^2

    `count []`, `mean [features]`, `scatter [features]`; sums are taken in float64.
    """
    if ranks.count() == 1:
        return
    mine, here = int(count), mean.double()
    ranks.add_up(count)
    whole = here * mine / max(1, int(count))
    ranks.add_up(whole)
    spread = scatter.double() + mine * (here - whole).square()
    ranks.add_up(spread)
    mean.copy_(whole)
    scatter.copy_(spread)


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
    """Fresh buffers of a probe named after a weight, by path, in the order in which its node reads them."""
    shapes: dict[str, tuple[int, ...]] = {"count": ()}
    shapes |= dict.fromkeys(("mean", "scatter", "level"), (size,))
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
    count, mean, scatter, level, *gram = (program.tensor(path) for path in probe.statistics)
    if int(count) == 0:
        raise SparsifyError(f"the probe at the input of @{where} saw no token; calibrate first")
    return Statistics(int(count), mean, scatter, level, gram[0] if gram else None)


class Collector(fx.Interpreter):
    """Runs a program and adds what flows through its probes to their buffers.

    Padded tokens (attention mask 0) are left out wherever the probed activation has one row a
    token.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program.module)
        self._program = program
        self._probes = {p.node: p for n in program.graph.nodes if (p := probe_at(n)) is not None}
        self._shape: tuple[int, ...] = ()
        self._kept: Tensor | None = None

    def reset(self) -> None:
        """Set every statistic to zero."""
        for probe in self._probes.values():
            for path in probe.statistics:
                self._program.tensor(path).zero_()

    def collect(self, batch: Mapping[str, Tensor]) -> None:
        """Run one batch of inputs `[batch, length]`."""
        inputs = self._program.complete(batch)
        self._shape = tuple(next(iter(inputs.values())).shape[:2])
        self._kept = padding(inputs)
        self.run(*inputs.values())

    @torch.no_grad()
    def add_up(self) -> None:
        """Put what all ranks have seen together into the probes of each."""
        for probe in self._probes.values():
            buffers = [self._program.tensor(path) for path in probe.statistics]
            if probe.scores is None:
                count, mean, scatter, *buffers = buffers
                pool(count, mean, scatter)
            ranks.add_up(*buffers)

    def run_node(self, n: fx.Node) -> Any:
        """Interpret a node; a probe's statistics grow by what it sees."""
        value = super().run_node(n)
        if n in self._probes:
            self._add(self._probes[n], value)
        return value

    def _add(self, probe: Probe, x: Tensor) -> None:
        rows = kept_rows(x, self._kept)
        if probe.scores is not None:
            scores = kept_rows(self.env[probe.scores], self._kept)
            add_routes(self._program, probe, rows, scores)
            return
        count, mean, scatter, level, *gram = (self._program.tensor(p) for p in probe.statistics)
        sequences = self._sequences(x)
        tokens = sequences.shape[0] * sequences.shape[1]
        kept = self._kept if self._kept is not None and self._kept.numel() == tokens else None
        per_sequence = None if kept is None else kept.bool().reshape(sequences.shape[:2])
        level.copy_(accumulate_level(level, sequences, per_sequence))
        seen, *moments = accumulate_spread(int(count), mean, scatter, rows)
        count.fill_(seen)
        for buffer, value in zip((mean, scatter), moments, strict=True):
            buffer.copy_(value)
        for buffer in gram:
            buffer.copy_(accumulate_gram(buffer, rows))

    def _sequences(self, x: Tensor) -> Tensor:
        """An activation as `[sequences, tokens, features]`; one sequence where they cannot be told apart."""
        features = x.shape[-1]
        if x.dim() == 2 and x.shape[0] == self._shape[0] * self._shape[-1]:
            # Flattened before the linear: one row a token of the inputs `[batch, length]`.
            return x.reshape(self._shape[0], -1, features)
        return x.reshape(x.shape[0] if x.dim() > 2 else 1, -1, features)


def by_wanda(program: Program) -> Callable[[Linear, Tensor], Tensor]:
    """Wanda's score `[out, in]` of a weight `[out, in]` of a linear, by the norms its probe measured."""

    def score(linear: Linear, weight: Tensor) -> Tensor:
        found = statistics_of(program, linear.x, linear.weight)
        return scores.wanda(weight, found.square, found.tokens)

    return score
