"""choose-tensors: stacks of weights become what they share at a low rank, written back dense (TRAWL).

    T = [W_up, W_down^T]                          stack=ffn         [2, channels, hidden]
    T = [W_q, W_k, W_v, W_o]                      stack=attention   [4, hidden, hidden]
    T_j <- U G_j V^T                              form=tucker       U [a, R], V [b, R], G [n, R, R]
    T_j <- A diag(c_j) B^T                        form=cp           A [a, R], B [b, R], C [n, R]

Every weight as `[out, in]`, whatever it is stored as; gates are left alone. One weight by itself
(`stack=one`) becomes its truncated singular value decomposition (LASER). Graph, shapes and bytes stay: what
is claimed is that noise goes, not that anything gets smaller (`split-linears` stores the factors). Which
stack at which rank helps, if any, `search` finds out on data. Source: TRAWL (2406.17261), LASER (2312.13558);
Tucker as the default and bounds on CP are ours.
The text of the graph stays.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsify.data.sequences import Data, Part, split
from sparsify.engine.contract import FUNCTION, Context, Effect, Moves, Pass, effect
from sparsify.errors import OptionError
from sparsify.ir.program import Program
from sparsify.ir.views.targets import refuse_shared, targeted
from sparsify.select.stacks import Kind, Scope, Stack, joined, stacks
from sparsify.select.trials import By, Score, Search, search
from sparsify.tensors.stacks import Fit, Form, fit, library
from sparsify.train.losses import TaskLoss, check_labels


@dataclass(frozen=True)
class ChooseTensors(Pass):
    """Approximate the stacks of some layers at a rank, or search for the one layer and rank that help most.

    `scope` puts the stacks of `segment` layers that follow each other into one, or those of all. `layers`
    are counted from 0 among the layers that have such a stack, below 0 from the end. With `search` each layer
    is tried alone at each `rank`, by the loss (or the share of labels missed) on `samples` sequences of the
    first half of the data; the best stays if it beats the model as it is. It is reported, with the median
    over layers, on as many of the second half.
    """

    name: ClassVar[str] = "choose-tensors"
    moves: ClassVar[Moves] = FUNCTION
    stack: Kind = "ffn"
    scope: Scope = "layer"
    segment: int = 4
    form: Form = "tucker"
    rank: tuple[int, ...] = (40,)
    layers: tuple[int, ...] = ()
    search: By | None = None
    samples: int = 32
    batch: int = 4
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def effect(self) -> Effect:
        """Changes dense weights that are stored as they are; a search needs data."""
        barred = ["mask.weights", "lora", "row-scales", "quantizers", "omission", "factors"]
        return effect(wants=["data"] if self.search else [], bars=barred)

    def check(self, program: Program) -> None:
        """There must be stacks of one shape each that have the ranks, and one rank where nothing chooses."""
        if not self.rank or (len(self.rank) > 1 and self.search is None):
            raise OptionError(
                f"rank={','.join(map(str, self.rank))} must be one number, unless search=loss is to choose"
            )
        if self.segment < 1:
            raise OptionError(f"segment={self.segment} must be 1 or more layers")
        if self.stack == "one" and self.scope != "layer":
            raise OptionError(f"stack=one takes each linear alone; leave scope={self.scope} out")
        for found in self._stacks(program):
            sizes = [len(found.slices), *found.slices[0].of(program.tensor(found.weights[0])).shape]
            if not all(1 <= rank <= max(sizes[1:]) for rank in self.rank):
                raise OptionError(
                    f"rank={','.join(map(str, self.rank))} does not fit the stack {sizes} of "
                    f"@{found.weights[0]}; it must be 1 to {max(sizes[1:])}"
                )
            if sizes[0] > 1:
                library()  # which may be missing

    def check_data(self, program: Program, data: Data) -> None:
        """There must be labels with logits, and sequences to choose on and to report on."""
        check_labels(program, data, "there is no score to search by; give layers and one rank")
        split(data, 0.5)

    def rewrite(self, program: Program, context: Context) -> int:
        """Change the weights of the stacks, of one at most where a search chooses; returns of how many."""
        found = self._stacks(program)
        if self.search is not None:
            return self._searched(program, context, found, self.search)
        context.progress.start(self.name, len(found))
        rows, (rank,) = [], self.rank
        for stack in found:
            made = self._fit(program, context, stack, rank)
            _write(program, stack, made)
            rows.append(_row(stack.number, rank, made.error, ridge=made.ridge))
            context.progress.advance(error=made.error)
        self._tell(context, rows)
        errors = [row["error"] for row in rows]
        context.notes.append(
            f"{len(found)} stacks at rank {rank}: relative error {min(errors):.3f} to {max(errors):.3f}, "
            f"median {statistics.median(errors):.3f}"
        )
        return len(found)

    def _stacks(self, program: Program) -> list[Stack]:
        views = targeted(program, self.targets, self.ignore)
        found = stacks(program, self.stack, views, self.layers)
        paths = {path for stack in found for path in stack.weights}
        why = "it would change for its other readers too"
        refuse_shared(program, [view for view in views if view.weight in paths], why)
        return joined(program, found, self.scope, self.segment)

    def _fit(self, program: Program, context: Context, stack: Stack, rank: int) -> Fit:
        return fit(stack.tensor(program), rank, self.form, context.seed)

    def _searched(self, program: Program, context: Context, found: Sequence[Stack], by: By) -> int:
        assert context.data is not None
        halves, loss = split(context.data, 0.5), TaskLoss(program)
        chooses, holds = (
            Score(by, loss, Part(half, 0, min(self.samples, len(half))), self.batch)
            for half in halves
        )
        context.progress.start(self.name, len(found) * len(self.rank))
        result = search(
            program,
            found,
            self.rank,
            lambda stack, rank: self._fit(program, context, stack, rank),
            chooses,
            holds,
            context.progress.advance,
        )
        self._tell(
            context,
            [
                _row(trial.number, trial.rank, trial.error, score=trial.score, held=trial.held)
                for trial in result.trials
            ],
        )
        context.notes.append(_sentence(result, by))
        if result.winner is None:
            return 0
        _write(program, *result.winner[1:])
        return 1

    def _tell(self, context: Context, rows: list[dict[str, float]]) -> None:
        context.figures.setdefault(self.name, []).extend(rows)


@torch.no_grad()
def _write(program: Program, stack: Stack, made: Fit) -> None:
    for path, value in stack.changed(program, made.slices).items():
        program.tensor(path).copy_(value)
    known = program.plan.setdefault("stacks", [])
    if len(stack.weights) > 1 and stack.weights not in known:
        known.append(stack.weights)


def _row(number: int, rank: int, error: float, **more: float | None) -> dict[str, float]:
    """A row of figures; what is not known is left out."""
    known = {key: value for key, value in more.items() if value is not None}
    return {"layer": number, "rank": rank, "error": error, **known}


def _sentence(result: Search, by: By) -> str:
    """What was found, on what chose it and on what was held out."""
    count = len({trial.number for trial in result.trials})
    shown = math.exp if by == "loss" else float
    word = "perplexity" if by == "loss" else "errors"
    held, median = (f"{shown(value):.4g}" for value in (result.held, result.median))
    spread = f"median of {count} layers, each at its best rank, {held} -> {median} held out"
    if result.winner is None:
        return f"no layer and rank lowered the {word} {shown(result.dense):.4g}; {spread}"
    best = result.winner[0]
    assert best.held is not None
    return (
        f"layer {best.number} at rank {best.rank}: {word} {shown(result.dense):.4g} -> "
        f"{shown(best.score):.4g} where it was chosen, {held} -> {shown(best.held):.4g} held out; {spread}"
    )
