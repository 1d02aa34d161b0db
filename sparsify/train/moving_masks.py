"""Masks that are chosen anew while the weights are trained."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsify.errors import OptionError
from sparsify.ir.program import Program
from sparsify.tensors.ladder import cubic
from sparsify.tensors.pattern import Pattern
from sparsify.train.movable import Movable, MovingWeights, Score
from sparsify.train.sharded import from_part, is_cut, part, part_like, whole


@dataclass(frozen=True)
class Refresh:
    """When and how masks are chosen: every so many steps, N of M by a score (None: magnitude).

    Without a pattern a fraction `sparsity` goes, rising to it by the cubic rule until step `end` if it is
    `cubic`; after `end` (None: never) masks stay. Without `feedback` what is masked does not learn and never
    comes back. `find` says which masks of a program move; None for those of its linears. Raises OptionError
    for a rise without an end.
    """

    steps: int
    pattern: Pattern | None = None
    score: Score | None = None
    sparsity: float = 0.0
    cubic: bool = False
    end: int | None = None
    feedback: bool = True
    find: Callable[[Program], Movable] | None = None

    def __post_init__(self) -> None:
        if self.cubic and (self.end is None or self.end < 1):
            raise OptionError("a cubic rise of the sparsity needs the step of its end, at least 1")

    def movable(self, program: Program) -> Movable:
        """The masks that move."""
        if self.find is not None:
            return self.find(program)
        return MovingWeights(program, pattern=self.pattern, by=self.score)

    def fraction(self, step: int, start: float) -> float:
        """The sparsity chosen at a step, of masks that left out a fraction `start` at first."""
        if not self.cubic or self.end is None:
            return self.sparsity
        return cubic(step, self.end, self.sparsity, start)


class AdaptiveMasks:
    """The keep-masks that move in a program during one training run.

    With `dense_forward` (CAST) the graph's masks are all true meanwhile and the chosen ones are
    kept here until `finish`; else (AST, DPF) they are the graph's own, changed in place, and gradients
    go straight through. Masks that are all true at the start are chosen at once. Raises OptionError where
    masks leave out more than they are to, and nothing can come back.
    """

    def __init__(self, program: Program, refresh: Refresh, *, dense_forward: bool = False) -> None:
        self.program, self.how, self.dense_forward = program, refresh, dense_forward
        self.what = refresh.movable(program)
        stored = {path: program.tensor(mask) for path, mask in self.what.masks.items()}
        self.masks = {p: m.clone() if dense_forward else m for p, m in stored.items()}
        self.start = self.what.share(_Whole(self.masks))
        if not refresh.feedback and refresh.pattern is None and self.start > refresh.sparsity:
            raise OptionError(
                f"masks leave out {self.start:.4f} already, and with feedback=false nothing comes back to "
                f"sparsity={refresh.sparsity}; raise the sparsity or choose masks anew"
            )
        if dense_forward:
            self._fill()
        if all(bool(whole(mask).all()) for mask in self.masks.values()):
            self._choose(0)
        self._edge = self._smallest_kept()
        self._initial, self._before = self._copies(), self._copies()

    def of_parameters(self) -> Mapping[Tensor, Tensor]:
        """The mask of each masked parameter, for the optimiser."""
        return {self.program.tensor(path): mask for path, mask in self.masks.items()}

    def due(self, step: int) -> bool:
        """Whether `refresh` is to be called before a step."""
        return step > 0 and step % self.how.steps == 0

    @torch.no_grad()
    def refresh(self, step: int) -> dict[str, float]:
        """Choose every mask from the weights as they are, unless they are frozen by now.

        The figures of `figures`, and `above`, where all are ranked by one threshold: the share of all
        entries, masked or not, above the threshold of the last choice.
        """
        self._before = self._copies()
        above: dict[str, float] = {}
        if self.what.one_threshold:
            scores = map(self.what.score, self.masks)
            over = sum(int((score > self._edge.to(score)).sum()) for score in scores)
            above = {"above": over / self._size()}
        if self.how.end is None or step <= self.how.end:
            self._choose(step)
            self._edge = self._smallest_kept()
        return {**self.figures(), **above}

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """Shares of what changed, counts of what came back, and mean sizes, of the masks as they are.

        `sparsity`: share of what is masked, of groups by their parameters; `flips`: of entries changed since
        the last refresh; `drift`: since the first masks; `reactivated`: number of entries kept now that were
        masked before the last refresh; `revived`: that the first masks had dropped; `masked`, `kept`: mean
        |W| on either side.
        """
        size = self._size()
        flips = drift = reactivated = revived = 0
        zeros, total, held = size, 0.0, 0.0
        for path, mask in _Whole(self.masks).items():
            absolute = self.what.size(path)
            zeros -= int(mask.sum())
            initial, before = (whole(self._like(b, path)) for b in (self._initial, self._before))
            flips += int((mask != before).sum())
            drift += int((mask != initial).sum())
            reactivated += int((mask & ~before).sum())
            revived += int((mask & ~initial).sum())
            total += float(absolute.sum())
            held += float((absolute * mask.to(absolute.device)).sum())
        return {
            "sparsity": self.what.share(_Whole(self.masks)),
            "flips": flips / size,
            "drift": drift / size,
            "reactivated": reactivated,
            "revived": revived,
            "masked": (total - held) / max(1, zeros),
            "kept": held / max(1, size - zeros),
        }

    def finish(self) -> None:
        """Put the chosen masks into the graph."""
        for path, mask in self.what.masks.items():
            part(self.program.tensor(mask)).copy_(part(self.masks[path]))

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """The dense weights, nothing masked, inside the block."""
        graphs = {path: part(self.program.tensor(path)) for path in self.what.masks.values()}
        before = {path: mask.clone() for path, mask in graphs.items()}
        self._fill()
        try:
            yield
        finally:
            for path, mask in before.items():
                graphs[path].copy_(mask)

    def training(self) -> AbstractContextManager[None]:
        """The graph as it is to be trained, inside the block."""
        plain = self.dense_forward or not self.how.feedback
        return nullcontext() if plain else self.what.straight()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The masks now, at the start and before the last choice, eight to a byte in the weight's order.

        Beside them the threshold of the last choice. Of masks that are cut over processes this alone: the
        others are `tensors`.
        """
        threshold = {"threshold": {"smallest": self._edge}}
        if any(is_cut(mask) for mask in self.masks.values()):
            return threshold
        masks = {"masks": self._copies(), "initial": self._initial, "before": self._before}
        return {**masks, **threshold}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take masks over from `state_dict`."""
        if "masks" in state:
            for path, mask in self.masks.items():
                mask.copy_(_unpacked(state["masks"][path], mask))
            self._initial, self._before = dict(state["initial"]), dict(state["before"])
        self._edge = state["threshold"]["smallest"]

    def tensors(self) -> dict[str, Tensor]:
        """The masks now, at the start and before the last choice, each like its mask, by `what/path`."""
        return {
            **{f"masks/{path}": mask for path, mask in self.masks.items()},
            **{f"initial/{path}": self._like(self._initial, path) for path in self.masks},
            **{f"before/{path}": self._like(self._before, path) for path in self.masks},
        }

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Put in what `tensors` gave, or what like it was filled with."""
        for path, mask in self.masks.items():
            part(mask).copy_(part(tensors[f"masks/{path}"]))
            self._initial[path] = _packed(part(tensors[f"initial/{path}"]))
            self._before[path] = _packed(part(tensors[f"before/{path}"]))

    @torch.no_grad()
    def _choose(self, step: int) -> None:
        score = self.what.score if self.how.feedback else self._score_of_the_living()
        for path, kept in self.what.keep(score, self.how.fraction(step, self.start)):
            mask = self.masks[path]
            part(mask).copy_(part_like(kept, mask))

    def _score_of_the_living(self) -> Callable[[str], Tensor]:
        """The score, that of masked entries below all others."""
        below = min(0.0, *(float(self.what.score(path).min()) for path in self.masks)) - 1

        def score(path: str) -> Tensor:
            found = self.what.score(path)
            return found.where(whole(self.masks[path]).to(found.device), below)

        return score

    @torch.no_grad()
    def _smallest_kept(self) -> Tensor:
        """Where there is one threshold, the smallest score of an entry that stays, `[]`."""
        smallest = [0.0]
        if self.what.one_threshold:
            masks = _Whole(self.masks).items()
            scores = ((self.what.score(path), mask) for path, mask in masks)
            kept = (score[mask.to(score.device)] for score, mask in scores)
            smallest = [float(values.min()) for values in kept if values.numel()] or smallest
        return torch.tensor(min(smallest), dtype=torch.float64)

    def _fill(self) -> None:
        for path in self.what.masks.values():
            part(self.program.tensor(path)).fill_(True)

    def _size(self) -> int:
        return sum(mask.numel() for mask in self.masks.values())

    def _copies(self) -> dict[str, Tensor]:
        return {path: _packed(part(mask)) for path, mask in self.masks.items()}

    def _like(self, copies: Mapping[str, Tensor], path: str) -> Tensor:
        """What a mask was when it was copied, cut over processes where it is."""
        mask = self.masks[path]
        return from_part(_unpacked(copies[path], part(mask)), mask)


class _Whole(Mapping[str, Tensor]):
    """Masks, each put together from the parts of all processes when it is asked for."""

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self._masks = masks

    def __getitem__(self, path: str) -> Tensor:
        return whole(self._masks[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)


def _packed(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def _unpacked(bits: Tensor, like: Tensor) -> Tensor:
    flat = np.unpackbits(bits.numpy(), count=like.numel()).astype(bool)
    return torch.from_numpy(flat).reshape(like.shape).to(like.device)
