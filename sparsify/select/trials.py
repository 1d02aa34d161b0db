"""Trials: approximated stacks tried one at a time on a program, by a score on text that has labels."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sparsify import ranks
from sparsify.data.dialogues import IGNORED
from sparsify.data.sequences import Data
from sparsify.data.shares import own_batches
from sparsify.errors import DataError, SparsifyError
from sparsify.ir.program import Program
from sparsify.select.stacks import Stack
from sparsify.tensors.stacks import Fit
from sparsify.train.losses import TaskLoss

By = Literal["loss", "errors"]


@dataclass(frozen=True)
class Score:
    """A mean over the labels of some data, smaller is better: their loss in nats, or the share missed."""

    by: By
    loss: TaskLoss
    data: Data
    batch: int

    @torch.no_grad()
    def of(self, program: Program) -> float:
        """The score of a program; DataError without labels, SparsifyError where it is not finite."""
        total, labels = 0.0, 0.0
        for batch in own_batches(self.data, range(len(self.data)), self.batch):
            outputs = program.run(batch)
            held = {key: value.to(outputs[0].device) for key, value in batch.items()}
            if self.by == "loss":
                total += float(self.loss(outputs, held, 1.0))
            else:
                total += _missed(outputs[0], _labels(self.loss, held))
            labels += self.loss.items(batch)
        total, labels = ranks.totals(total, labels)
        if not labels:
            raise DataError("the data has no label to score by; bring text, or labels")
        if not math.isfinite(total):
            raise SparsifyError(f"the loss became {total}; the weights hold NaN or have grown")
        return total / labels


def _labels(loss: TaskLoss, batch: Mapping[str, Tensor]) -> Tensor:
    labels = loss.targets(batch)
    if labels is None:
        labels = batch.get("labels")
    if labels is None or labels.is_floating_point():
        raise DataError("search=errors counts labels of classes or tokens; use search=loss")
    return labels


def _missed(logits: Tensor, labels: Tensor) -> int:
    return int(((logits.argmax(-1) != labels) & (labels != IGNORED)).sum())


@dataclass(frozen=True)
class Trial:
    """One stack at one rank, alone changed: the error of its fit, and the score on what chooses.

    `held` is the score on what is held out, for the best rank of each stack.
    """

    number: int
    rank: int
    error: float
    score: float
    held: float | None = None


@dataclass(frozen=True)
class Search:
    """What a search has found; `dense` and `held` are the scores of the program as it was.

    `winner` has the smallest score on what chooses, the first of equals; None where none is below `dense`.
    """

    trials: list[Trial]
    dense: float
    held: float
    winner: tuple[Trial, Stack, Fit] | None

    @property
    def median(self) -> float:
        """The median over stacks of the score on what is held out."""
        return statistics.median(trial.held for trial in self.trials if trial.held is not None)


def search(
    program: Program,
    found: Sequence[Stack],
    ranks: Sequence[int],
    fitted: Callable[[Stack, int], Fit],
    chooses: Score,
    holds: Score,
    advance: Callable[[], None],
) -> Search:
    """Try every stack at every rank, each alone; the program stays as it is.

    Only the best rank of each stack, by what chooses, is run on what is held out.
    """
    dense, trials = chooses.of(program), list[Trial]()
    winner: tuple[Trial, Stack, Fit] | None = None
    for stack in found:
        tried: list[Trial] = []
        best: tuple[Trial, Fit] | None = None
        for rank in ranks:
            fit = fitted(stack, rank)
            score = chooses.of(with_fit(program, stack, fit))
            tried.append(Trial(stack.number, rank, fit.error, score))
            if best is None or score < best[0].score:
                best = tried[-1], fit
            advance()
        assert best is not None
        shown = replace(best[0], held=holds.of(with_fit(program, stack, best[1])))
        trials += [shown if trial is best[0] else trial for trial in tried]
        if shown.score < (dense if winner is None else winner[0].score):
            winner = shown, stack, best[1]
    return Search(trials, dense, holds.of(program), winner)


def with_fit(program: Program, stack: Stack, fit: Fit) -> Program:
    """A program with one stack approximated, over the other's tensors; that one stays as it is."""
    made = program.shared()
    for path, value in stack.changed(program, fit.slices).items():
        made.put(path, value, trainable=False)
    return made
