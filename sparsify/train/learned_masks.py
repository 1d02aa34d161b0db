"""Masks that are learnt with the weights: their log-alphas, and the multipliers that hold them to a target.

    minimise over weights and log-alphas, maximise over multipliers
        loss(z) + sum over families of mean over rows of  lambda (e - t) + phi (e - t)^2

`e` is the expected sparsity of a row and `t` the one that it is to have by now. Source: Sheared LLaMA
(2310.06694), section 2.1, whose code takes fractions where the paper takes counts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsify import ranks
from sparsify.tensors import hard_concrete
from sparsify.tensors.decay import ramp
from sparsify.tensors.seeds import generator_of

# Log-alphas start here, all of them beyond the bound: at first nearly everything stays.
_MEAN, _SPREAD = 5.0, 0.01
# For each kind of units its rows, `[units]` each.
Rows = Mapping[str, Sequence[Tensor]]


@dataclass(frozen=True)
class Family:
    """Units of one kind: `rows` says how many each of their rows has, of which `kept[i]` are to stay."""

    rows: tuple[int, ...]
    kept: tuple[int, ...]

    def targets(self) -> list[float]:
        """The sparsity of each row in the end."""
        return [1 - kept / size for kept, size in zip(self.kept, self.rows, strict=True)]


class LearnedMasks:
    """The masks of one training run, by family.

    `begin` starts a step; `place` hands its masks to `put`, drawn anew for the step and the same for each of
    its micro-batches; `penalty` is what the constraint adds to the loss. Targets rise from 0 over a fraction
    `rise` of the run. Everything depends on the seed and the step alone.
    """

    def __init__(
        self,
        families: Mapping[str, Family],
        put: Callable[[Rows], None],
        *,
        lr: float = 1.0,
        rise: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.families, self.put = dict(families), put
        self.lr, self.rise, self.seed = lr, rise, seed
        self.log_alphas = {
            kind: [self._first(number, row, size) for row, size in enumerate(family.rows)]
            for number, (kind, family) in enumerate(self.families.items())
        }
        self.multipliers = {kind: torch.zeros(2, requires_grad=True) for kind in self.families}
        self._step, self._progress = 0, 0.0

    def to(self, device: torch.device) -> None:
        """Move to a device, before the optimiser is told of the tensors."""
        for rows in self.log_alphas.values():
            rows[:] = [_leaf(row, device) for row in rows]
        self.multipliers = {kind: _leaf(pair, device) for kind, pair in self.multipliers.items()}

    def groups(self) -> list[dict[str, Any]]:
        """What the optimiser is told: descent in the log-alphas, ascent in the multipliers, no decay."""
        masks = [row for rows in self.log_alphas.values() for row in rows]
        how = {"lr": self.lr, "weight_decay": 0.0}
        multipliers = list(self.multipliers.values())
        return [{"params": masks, **how}, {"params": multipliers, "maximize": True, **how}]

    @torch.no_grad()
    def begin(self, step: int, progress: float) -> None:
        """Start step number `step`, a fraction `progress` of the run being done."""
        self._step, self._progress = step, progress
        for rows in self.log_alphas.values():
            for row in rows:
                row.clamp_(-hard_concrete.BOUND, hard_concrete.BOUND)

    def place(self) -> None:
        """Hand on the masks of this step, with a graph of their own back to the log-alphas."""
        self.put(
            {
                kind: [self._draw(number, i, row) for i, row in enumerate(rows)]
                for number, (kind, rows) in enumerate(self.log_alphas.items())
            }
        )

    @torch.no_grad()
    def place_soft(self) -> None:
        """Hand on what masks are when nothing is drawn, for measuring: `sigmoid(1.2 a)`."""
        self.put({k: [hard_concrete.soft(r) for r in rows] for k, rows in self.log_alphas.items()})

    def penalty(self) -> Tensor:
        """What the constraint adds to the loss of a step, a scalar."""
        terms = [
            hard_concrete.penalty(self._expected(kind), self._target(kind), self.multipliers[kind])
            for kind in self.families
        ]
        return torch.stack(terms).sum()

    def share_gradients(self) -> None:
        """Put the means over ranks in the place of this rank's gradients."""
        for group in self.groups():
            for value in group["params"]:
                if value.grad is not None:
                    ranks.add_up(value.grad)
                    value.grad /= ranks.count()

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """Expected sparsity, target (means over rows) and multipliers of each family, by its name."""
        found = {}
        for kind in self.families:
            first, second = (float(value) for value in self.multipliers[kind])
            found[f"{kind}_sparsity"] = float(self._expected(kind).mean())
            found[f"{kind}_target"] = float(self._target(kind).mean())
            found |= {f"{kind}_lambda": first, f"{kind}_phi": second}
        return found

    @torch.no_grad()
    def settled(self) -> dict[str, list[Tensor]]:
        """The masks in the end: soft where kept, and exactly the target's number of them in each row."""
        bound = hard_concrete.BOUND
        return {
            kind: [
                hard_concrete.settled(row.clamp(-bound, bound), kept)
                for row, kept in zip(rows, self.families[kind].kept, strict=True)
            ]
            for kind, rows in self.log_alphas.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Log-alphas and multipliers."""
        return {
            "log_alphas": {k: [r.detach() for r in rows] for k, rows in self.log_alphas.items()},
            "multipliers": {kind: pair.detach() for kind, pair in self.multipliers.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take `state_dict` over."""
        for kind, rows in self.log_alphas.items():
            for row, stored in zip(rows, state["log_alphas"][kind], strict=True):
                row.copy_(stored)
            self.multipliers[kind].copy_(state["multipliers"][kind])

    def _first(self, family: int, row: int, size: int) -> Tensor:
        noise = torch.randn(size, generator=generator_of((self.seed, family, row)))
        return (_MEAN + _SPREAD * noise).requires_grad_()

    def _draw(self, family: int, number: int, row: Tensor) -> Tensor:
        seeds = (self.seed, self._step, family, number)
        return hard_concrete.sample(row, hard_concrete.logits(row.numel(), seeds).to(row.device))

    def _expected(self, kind: str) -> Tensor:
        return torch.stack([hard_concrete.expected_sparsity(row) for row in self.log_alphas[kind]])

    def _target(self, kind: str) -> Tensor:
        ends = self.families[kind].targets()
        device = self.multipliers[kind].device
        return torch.tensor([ramp(self._progress, end, self.rise) for end in ends], device=device)


def _leaf(value: Tensor, device: torch.device) -> Tensor:
    return value.detach().to(device).requires_grad_()
