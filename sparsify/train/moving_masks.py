"""Masks that are chosen anew while the weights are trained."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsify.ir.features.weight_mask import masked_linears
from sparsify.ir.program import Program
from sparsify.ir.run.straight_masks import straight_masks
from sparsify.ir.views.linear import Linear, branched_weight, out_in
from sparsify.tensors.masks import keep_nm
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.scores import magnitude
from sparsify.train.sharded import whole

# Scores [out, in] of a linear's weight, larger for what is to stay.
Score = Callable[[Linear, Tensor], Tensor]


@dataclass(frozen=True)
class Refresh:
    """When and how masks are chosen: every so many steps, N of M by a score (None: magnitude)."""

    steps: int
    pattern: Pattern
    score: Score | None = None


class AdaptiveMasks:
    """The keep-masks of a program's masked weights during one training run.

    With `dense_forward` (CAST) the graph's masks are all true meanwhile and the chosen ones are
    kept here until `finish`; else (AST) they are the graph's own, changed in place, and gradients
    go straight through. Masks that are all true at the start are chosen by the first refresh.
    """

    def __init__(self, program: Program, refresh: Refresh, *, dense_forward: bool) -> None:
        self.program, self.how, self.dense_forward = program, refresh, dense_forward
        self.views = {view.weight: view for view in masked_linears(program)}
        self.masks: dict[str, Tensor] = {}
        for path, view in self.views.items():
            assert view.mask is not None
            stored = program.tensor(view.mask)
            self.masks[path] = stored.clone() if dense_forward else stored
            if dense_forward:
                stored.fill_(True)
        if all(bool(mask.all()) for mask in self.masks.values()):
            self._choose()
        self._initial, self._before = self._copies(), self._copies()

    def of_parameters(self) -> Mapping[Tensor, Tensor]:
        """The mask of each masked parameter, for the optimiser."""
        return {self.program.tensor(path): mask for path, mask in self.masks.items()}

    def due(self, step: int) -> bool:
        """Whether masks are chosen before a step."""
        return step > 0 and step % self.how.steps == 0

    def refresh(self) -> dict[str, float]:
        """Choose every mask from the weights as they are; shares of what changed, and mean sizes.

        `flips`: share of entries changed since the last refresh; `drift`: since the first masks;
        `revived`: number of weights kept now that the first masks had dropped; `masked`, `kept`:
        mean |W| on either side.
        """
        self._before = self._copies()
        self._choose()
        return self.figures()

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """The figures of `refresh`, of the masks as they are."""
        size = sum(mask.numel() for mask in self.masks.values())
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        flips = drift = revived = 0
        total = held = 0.0
        for path, mask in self.masks.items():
            initial = _unpacked(self._initial[path], mask)
            flips += int((mask != _unpacked(self._before[path], mask)).sum())
            drift += int((mask != initial).sum())
            revived += int((mask & ~initial).sum())
            absolute = whole(self.program.tensor(path)).abs()
            total += float(absolute.sum())
            held += float((absolute * mask).sum())
        return {
            "flips": flips / size,
            "drift": drift / size,
            "revived": revived,
            "masked": (total - held) / max(1, size - kept),
            "kept": held / max(1, kept),
        }

    def finish(self) -> None:
        """Put the chosen masks into the graph."""
        for path, view in self.views.items():
            assert view.mask is not None
            self.program.tensor(view.mask).copy_(self.masks[path])

    def training(self) -> AbstractContextManager[None]:
        """The graph as it is to be trained, inside the block."""
        views = [] if self.dense_forward else list(self.views.values())
        return straight_masks(self.program, views)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The masks now, at the start and before the last choice, eight to a byte in the weight's order."""
        return {"masks": self._copies(), "initial": self._initial, "before": self._before}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take masks over from `state_dict`."""
        for path, mask in self.masks.items():
            mask.copy_(_unpacked(state["masks"][path], mask))
        self._initial, self._before = dict(state["initial"]), dict(state["before"])

    @torch.no_grad()
    def _choose(self) -> None:
        for path, view in self.views.items():
            weight = out_in(view, whole(branched_weight(self.program, view)))
            score = magnitude(weight) if self.how.score is None else self.how.score(view, weight)
            self.masks[path].copy_(out_in(view, keep_nm(score, self.how.pattern)))

    def _copies(self) -> dict[str, Tensor]:
        return {path: _packed(mask) for path, mask in self.masks.items()}


def _packed(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def _unpacked(bits: Tensor, like: Tensor) -> Tensor:
    flat = np.unpackbits(bits.numpy(), count=like.numel()).astype(bool)
    return torch.from_numpy(flat).reshape(like.shape).to(like.device)
