"""What goes into a store of neighbours: states that enter the head, with what followed them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.data.dialogues import IGNORED
from sparsify.data.sequences import Data, batches
from sparsify.errors import DataError, OptionError
from sparsify.ir.features.neighbours import Neighbours
from sparsify.ir.mode import evaluating
from sparsify.ir.program import Program
from sparsify.ir.run.segments import run_to
from sparsify.tensors.neighbours import best_share, neighbour_weights, retrieved, similarities
from sparsify.train.losses import TaskLoss

# Rows whose values are compared at once, and the temperatures that are tried, of the largest similarity.
_AT_ONCE = 128
_TEMPERATURES = tuple(2.0**-i for i in range(10))


@dataclass(frozen=True)
class Rows:
    """States `[n, d]` that enter the head, its logits `[n, C]` if asked for, values `[n]` or `[n, C]`."""

    states: Tensor
    logits: Tensor
    values: Tensor

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.states)


@dataclass(frozen=True)
class Choice:
    """A share and a temperature; nats a row of the head alone and with the store."""

    share: float
    temperature: float
    alone: float
    with_store: float


class Reader:
    """Reads rows off data: values are the data's labels, or what another program says of the same inputs."""

    def __init__(self, program: Program, found: Neighbours, teacher: Program | None) -> None:
        self.program, self.found, self.teacher = program, found, teacher
        self._labels = Labels(program)

    def enough(self, data: Data, indices: Sequence[int], count: int) -> tuple[list[int], int]:
        """The first sequences that hold `count` rows, all where there are fewer, and how many they hold."""
        taken, rows = list[int](), 0
        for index in indices:
            if rows >= count:
                break
            taken.append(index)
            rows += int(self._marks(data.batch([index])).sum())
        return taken, rows

    def read(
        self, data: Data, indices: Sequence[int], count: int, batch: int, *, logits: bool = False
    ) -> Rows:
        """The first `count` rows of some sequences, `batch` of them run at once."""
        parts = list(self._each(data, indices, batch, logits))
        states, own, values = (
            torch.cat([getattr(part, name) for part in parts])[:count]
            for name in ("states", "logits", "values")
        )
        return Rows(states, own, values)

    def _each(self, data: Data, indices: Sequence[int], batch: int, keep: bool) -> Iterator[Rows]:
        wanted = [self.found.x, self.found.logits]
        for part in batches(data, indices, batch):
            with evaluating(self.program.module), torch.no_grad():
                inputs = self.program.complete(part)
                states, logits = run_to(self.program.module, inputs, wanted)
            marks = self._marks(part).to(states.device)
            own = logits[marks] if keep else logits.new_empty(0)
            yield Rows(states[marks], own, self._values(part, marks, logits))

    def _marks(self, part: dict[str, Tensor]) -> Tensor:
        """Which states of a batch are rows, `[batch, length]` or `[batch]`."""
        if self.teacher is None:
            return self._labels(part) != IGNORED
        ids = next(iter(part.values()))
        if not self._labels.of_tokens:
            return torch.ones(len(ids), dtype=torch.bool)
        mask = part.get("attention_mask")
        return torch.ones_like(ids).bool() if mask is None else mask.bool()

    def _values(self, part: dict[str, Tensor], marks: Tensor, logits: Tensor) -> Tensor:
        dense = self.program.tensor(self.found.values).dim() == 2
        if self.teacher is None:
            chosen = self._labels(part).to(marks.device)[marks]
            if not dense:
                return chosen
            return torch.nn.functional.one_hot(chosen, logits.shape[-1]).to(logits)
        said = self.teacher.run(part)[0].to(logits.device)
        if said.shape != logits.shape:
            raise OptionError(
                f"the dense twin gives {list(said.shape)}, the program {list(logits.shape)}: both must say "
                "the same classes of the same tokens"
            )
        return said[marks].softmax(-1).to(logits) if dense else said[marks].argmax(-1)


class Labels:
    """The labels that belong to a program's logits, -100 where there is none."""

    def __init__(self, program: Program) -> None:
        self._task, shape = TaskLoss(program), program.run()[0].shape
        self.of_tokens, self._dims, self._classes = len(shape) == 3, len(shape), shape[-1]

    def __call__(self, part: dict[str, Tensor]) -> Tensor:
        """`[batch, length]` for logits of tokens, `[batch]` for those of sequences; DataError for none."""
        labels = self._task.targets(part) if self.of_tokens else part.get("labels")
        if labels is None or labels.is_floating_point() or labels.dim() != self._dims - 1:
            raise DataError(
                "the data has no class for each of the program's logits; bring labels, or take by=dense"
            )
        if int(labels.max()) >= self._classes:
            raise DataError(
                f"the data has the label {int(labels.max())}, the program logits for {self._classes} classes"
            )
        return labels


def choose(
    found: Neighbours,
    store: Rows,
    held: Rows,
    share: float | None,
    temperature: float | None,
) -> Choice:
    """The share and the temperature of least cross-entropy on rows that are not in the store.

    What is given stays; temperatures are tried in halves from the largest similarity down.
    """
    keys = store.states
    largest = 1.0
    if found.cosine:
        keys = torch.nn.functional.normalize(keys, dim=-1)
    else:
        largest = float(held.states.norm(dim=-1).mean() * keys.norm(dim=-1).mean())
    tried = [temperature] if temperature else [largest * part for part in _TEMPERATURES]
    said: list[list[Tensor]] = [[] for _ in tried]
    own, targets = list[Tensor](), list[Tensor]()
    for start in range(0, len(held), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        s = similarities(held.states[part], keys, cosine=found.cosine)
        model = held.logits[part].softmax(-1)
        own.append(_of_targets(model, held.values[part]))
        targets.append(_weights(held.values[part]))
        for i, tau in enumerate(tried):
            w = neighbour_weights(s, torch.as_tensor(tau).to(s), found.k)
            r = retrieved(w, store.values, model.shape[-1])
            said[i].append(_of_targets(r, held.values[part]))
    model, target = torch.cat(own), torch.cat(targets)
    alone = best_share(model, model, target)[1]
    results = [
        (*best_share(model, torch.cat(parts), target, share), tau)
        for parts, tau in zip(said, tried, strict=True)
    ]
    best, loss, tau = min(results, key=lambda result: result[1])
    return Choice(best, tau, alone, loss)


def _of_targets(p: Tensor, values: Tensor) -> Tensor:
    """Of probabilities `[n, C]` those that decide: of the class that followed `[n, 1]`, or all."""
    return p if values.dim() == 2 else p.gather(1, values[:, None])


def _weights(values: Tensor) -> Tensor:
    """How much each of those counts."""
    return values if values.dim() == 2 else torch.ones(len(values), 1, device=values.device)
