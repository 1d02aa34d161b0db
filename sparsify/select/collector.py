"""Filling probes: a program is interpreted, and what flows through them is added to their buffers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sparsify import ranks
from sparsify.ir.ops.grouped import rows_of_each
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import probe as probe_path
from sparsify.ir.views.probe import Probe, probe_at
from sparsify.select.routes import add_routes
from sparsify.select.statistics import pool
from sparsify.tensors.moments import accumulate_gram, accumulate_level, accumulate_spread


def empty_statistics(
    path: str, size: int, *, gram: bool, experts: Sequence[int] = ()
) -> dict[str, Tensor]:
    """Fresh buffers of a probe named after a weight, by path, in the order in which its node reads them.

    With their number in `experts` each has its own, `[experts, ...]`.
    """
    shapes: dict[str, tuple[int, ...]] = {"count": ()}
    shapes |= dict.fromkeys(("mean", "scatter", "level"), (size,))
    if gram:
        shapes["gram"] = (size, size)
    return {
        probe_path(path, kind): torch.zeros(
            (*experts, *shape), dtype=torch.int64 if kind == "count" else torch.float32
        )
        for kind, shape in shapes.items()
    }


def kept_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """An activation `x [..., features]` as `[tokens, features]`, padded tokens left out.

    `mask [batch, length]` is the attention mask, None when nothing is padded; an activation that has
    not one row a token is taken whole.
    """
    rows = x.detach().reshape(-1, x.shape[-1])
    if mask is None or mask.numel() != rows.shape[0]:
        return rows
    return rows[mask.reshape(-1).bool()]


def rows_of_experts(
    x: Tensor, ends: Tensor | None, tokens: Tensor | None, mask: Tensor | None
) -> list[Tensor]:
    """The rows `[rows, features]` of each expert, those of padded tokens left out.

    Of `x [rows, features]` they are the ones up to its entry of `ends [experts]`. Without `ends` they are
    those of `x [experts, rows, features]` that are not zero: what a token is not sent to gets zeros. `tokens
    [rows]` is the number of each row's token, None where that is not known and all are taken; `mask` as in
    `kept_rows`.
    """
    places = rows_of_each(x, ends)
    if ends is None:
        each = [kept_rows(x[place], mask) for place in places]
        return [rows[rows.any(1)] for rows in each]
    kept = torch.ones(len(x), dtype=torch.bool, device=x.device)
    if mask is not None and tokens is not None and _is_of(mask, tokens):
        kept = mask.reshape(-1).bool()[tokens]
    return [x.detach()[place][kept[place]] for place in places]


def _is_of(mask: Tensor, tokens: Tensor) -> bool:
    """Whether a mask is one of these tokens: a decoder with experts may run beside an encoder's mask."""
    return len(tokens) % mask.numel() == 0 and int(tokens.max()) < mask.numel()


def padding(inputs: Mapping[str, Tensor]) -> Tensor | None:
    """The attention mask of a batch; None when there is none, or it leaves nothing out."""
    mask = inputs.get("attention_mask")
    return None if mask is None or bool(mask.all()) else mask


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
                moments, buffers = buffers[:3], buffers[3:]
                each = zip(*moments, strict=True) if probe.of_experts else [moments]
                for count, mean, scatter in each:
                    pool(count, mean, scatter)
            ranks.add_up(*buffers)

    def run_node(self, n: fx.Node) -> Any:
        """Interpret a node; a probe's statistics grow by what it sees."""
        value = super().run_node(n)
        if n in self._probes:
            self._add(self._probes[n], value)
        return value

    def _add(self, probe: Probe, x: Tensor) -> None:
        if probe.of_experts:
            self._add_of_experts(probe, x)
            return
        rows = kept_rows(x, self._kept)
        if probe.scores is not None:
            scores = kept_rows(self.env[probe.scores], self._kept)
            add_routes(self._program, probe, rows, scores)
            return
        buffers = [self._program.tensor(path) for path in probe.statistics]
        sequences = self._sequences(x)
        tokens = sequences.shape[0] * sequences.shape[1]
        kept = self._kept if self._kept is not None and self._kept.numel() == tokens else None
        per_sequence = None if kept is None else kept.bool().reshape(sequences.shape[:2])
        _grow(buffers, rows, sequences, per_sequence)

    def _add_of_experts(self, probe: Probe, x: Tensor) -> None:
        """Grow the statistics of each expert by its rows, which count as one sequence."""
        ends, tokens = (
            None if node is None else self.env[node] for node in (probe.ends, probe.tokens)
        )
        buffers = [self._program.tensor(path) for path in probe.statistics]
        each = rows_of_experts(x, ends, tokens, self._kept)
        for rows, *own in zip(each, *buffers, strict=True):
            _grow(own, rows, rows[None])

    def _sequences(self, x: Tensor) -> Tensor:
        """An activation as `[sequences, tokens, features]`; one sequence where they cannot be told apart."""
        features = x.shape[-1]
        if x.dim() == 2 and x.shape[0] == self._shape[0] * self._shape[-1]:
            # Flattened before the linear: one row a token of the inputs `[batch, length]`.
            return x.reshape(self._shape[0], -1, features)
        return x.reshape(x.shape[0] if x.dim() > 2 else 1, -1, features)


def _grow(
    buffers: Sequence[Tensor], rows: Tensor, sequences: Tensor, kept: Tensor | None = None
) -> None:
    """Add `rows [tokens, features]` to statistics in place; to levels as `[sequences, tokens, features]`."""
    count, mean, scatter, level, *gram = buffers
    if not len(rows):
        return
    level.copy_(accumulate_level(level, sequences, kept))
    seen, *moments = accumulate_spread(int(count), mean, scatter, rows)
    count.fill_(seen)
    for buffer, value in zip((mean, scatter), moments, strict=True):
        buffer.copy_(value)
    for buffer in gram:
        buffer.copy_(accumulate_gram(buffer, rows))
