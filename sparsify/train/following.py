"""Which sequences of domains each step of a run gets, and weights that follow what is measured."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sparsify.data.domains import DomainData, Draws
from sparsify.train.domains import Constant, Dynamic
from sparsify.train.settings import Figures

Losses = Mapping[str, float]
WEIGHT, LOSS, REFERENCE = "weight.", "validation.", "reference."


class Following:
    """The sequences of each step of one run, and weights that follow what `losses` measures.

    `losses` gives the held-out loss of each domain now (None: none can be measured), `dense` that of the
    dense twin.
    """

    def __init__(
        self,
        data: DomainData,
        how: Constant | Dynamic,
        seed: int,
        losses: Callable[[], Losses] | None,
        dense: Callable[[], Losses] | None,
    ) -> None:
        self.data, self.how = data, how
        self.draws = Draws(data, seed)
        self._losses, self._dense = losses, dense
        self._references: dict[str, float] = how.references(data.names)
        self._step, self._indices = -1, list[int]()

    def begin(self, step: int) -> Figures:
        """What is due before a step: losses are measured, and weights follow them; the figures of both."""
        if step % self.how.every or self._losses is None:
            return {}
        losses = self._losses()
        found = {LOSS + name: loss for name, loss in losses.items()}
        if step == 0:
            self._complete()
            found |= {REFERENCE + name: loss for name, loss in self._references.items()}
        elif self._references:
            excess = [losses[name] - self._references[name] for name in self.data.names]
            self.draws.weights = self.how.update(self.draws.weights, excess)
        return {**found, **self._weights()}

    def finish(self) -> Figures:
        """The losses and weights at the end."""
        if self._losses is None:
            return {}
        losses = self._losses()
        return {**{LOSS + name: loss for name, loss in losses.items()}, **self._weights()}

    def indices(self, step: int, count: int) -> list[int]:
        """The sequences of a step, the same when asked again."""
        if step != self._step:
            self._step, self._indices = step, self.draws.take(count)
        return self._indices

    def state_dict(self) -> dict[str, Tensor]:
        """The draws and the references, `[domains]` each."""
        losses = [self._references.get(name, math.nan) for name in self.data.names]
        return {**self.draws.state(), "references": torch.tensor(losses, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take `state_dict` over."""
        self.draws.load(state)
        found = zip(self.data.names, state["references"].tolist(), strict=True)
        self._references = {name: loss for name, loss in found if not math.isnan(loss)}

    def _weights(self) -> Figures:
        named = zip(self.data.names, self.draws.weights, strict=True)
        return {WEIGHT + name: weight for name, weight in named}

    def _complete(self) -> None:
        """Measure the references that are not given."""
        if self._dense is not None:
            self._references = {**self._dense(), **self._references}


def note_of(how: Constant | Dynamic, names: Sequence[str], rows: Sequence[Figures]) -> str:
    """A sentence on each domain for the report: its weight and loss at the start and at the end."""
    first, last = rows[0], rows[-1]
    given = how.references(names)
    parts = []
    for name in names:
        weights, losses = ([row[kind + name] for row in (first, last)] for kind in (WEIGHT, LOSS))
        part = f"{name} weight {weights[0]:.4g} to {weights[1]:.4g}, held-out loss "
        part += f"{losses[0]:.4g} to {losses[1]:.4g}"
        if REFERENCE + name in first:
            of = "" if name in given else " of the dense twin"
            part += f", reference{of} {first[REFERENCE + name]:.4g}"
        parts.append(part)
    rule = f", by the {how.rule}'s rule" if isinstance(how, Dynamic) else ""
    return f"domains{rule}: " + "; ".join(parts)
