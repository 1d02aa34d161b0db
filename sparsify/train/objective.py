"""What is minimised, micro-batch by micro-batch, so that they add up to the loss of their whole step.

    loss = task * sum_labels CE / labels + sum_tokens D / size + balance * mean of B

with both sums, and what they are divided by, over all micro-batches and processes of a step; B is that of
each micro-batch, over all processes, as `balance.py` has it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from sparsify.ir.program import Program
from sparsify.ir.run.head import find_head
from sparsify.train.balance import Balance
from sparsify.train.chunks import Terms, chunked_loss
from sparsify.train.forward import Teacher, Trained, side_of
from sparsify.train.losses import Distillation, OfTop, TaskLoss, mean
from sparsify.train.settings import Figures, Settings
from sparsify.train.top_logits import inputs_of, top_logits_of

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Part:
    """A micro-batch with the number of labels of its step, and its share of the step's distance.

    `labels` is None where the micro-batch is the whole step, `dense` where the twin's outputs are made later.
    """

    batch: Batch
    labels: float | None
    share: float
    dense: tuple[Tensor, ...] | None


class Objective:
    """The losses of a program in training: the task's, and the distance to its dense twin."""

    def __init__(
        self,
        program: Program,
        settings: Settings,
        accelerator: Accelerator,
        teacher: Teacher | None,
        distance: Distillation | None,
    ) -> None:
        self.program, self.settings, self.accelerator = program, settings, accelerator
        self.teacher, self.distance = teacher, distance
        # Asked before the model is wrapped: finding out runs the program in evaluation mode.
        self.task = TaskLoss(program) if settings.task else None
        first = next(iter(program.sample.values()))
        self._by_token = program.run()[0].shape[:-1] == first.shape[:2]
        self._dtype = torch.bfloat16 if settings.precision == "bf16" else None
        self.balance = Balance(program) if settings.balance else None

    def parts(self, batches: Sequence[Batch]) -> list[Part]:
        """The micro-batches of one step on this process."""
        alone = len(batches) == 1 and self.accelerator.num_processes == 1
        labels: float | None = None
        if self.task is not None and not alone:
            labels = self._over_processes(sum(self.task.items(batch) for batch in batches))
        dense: list[tuple[Tensor, ...] | None] = [None] * len(batches)
        shares = [1.0] * len(batches)
        if self.distance is not None and not alone:
            if self.distance.per_token:
                sizes = [self._tokens(batch) for batch in batches]
            else:
                found = [self._dense(batch) for batch in batches]
                masks = [batch.get("attention_mask") for batch in batches]
                sizes = [self.distance.size(d, m) for d, m in zip(found, masks, strict=True)]
                dense = list(found)
            whole = self._over_processes(sum(sizes))
            shares = [size / whole for size in sizes]
        return [Part(b, labels, s, d) for b, s, d in zip(batches, shares, dense, strict=True)]

    def __call__(self, model: Any, part: Part) -> tuple[Tensor, Figures]:
        """The loss of a micro-batch, and what it adds to the figures of its step."""
        inputs = inputs_of(part.batch)
        bare: Trained = self.accelerator.unwrap_model(model)
        bare.headless = self._in_chunks(part.batch)
        bare.watched = self.balance.watched if self.balance is not None else ()
        values = model(**inputs)
        outputs = values[: len(values) - len(bare.watched)]
        if bare.headless:
            total, task, distance = self._chunked(outputs, part)
        else:
            total, task, distance = self._whole(outputs, part)
        figures = {"loss": float(total.detach())}
        if task is not None:
            figures["task"] = float(task.detach())
        if distance is not None:
            figures["distill"] = float(distance.detach())
        if self.balance is not None:
            spread = self.balance(values[len(outputs) :], part.batch) / self.settings.accumulate
            total = total + self.settings.balance * spread
            figures |= {"loss": float(total.detach()), "balance": float(spread.detach())}
        return total, figures

    def _in_chunks(self, batch: Batch) -> bool:
        """Whether the loss is a sum over tokens of what one head makes of each."""
        if self.task is not None:
            labels = self.task.targets(batch)
            if labels is None or labels.shape != batch["input_ids"].shape:
                return False
        if self.distance is not None:
            bare = self.teacher is None or find_head(self.teacher.program) is not None
            if not (self.distance.per_token and bare):
                return False
        return "input_ids" in batch and find_head(self.program) is not None

    def _whole(
        self, outputs: Sequence[Tensor], part: Part
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        total, task, distance = outputs[0].new_zeros(()), None, None
        if self.task is not None:
            task = self.task(outputs, part.batch, part.labels)
            total = total + self.settings.task * task
        if self.distance is not None:
            distance = self._distance(self.distance, outputs, part) * part.share
            total = total + distance
        return total, task, distance

    def _distance(self, distance: Distillation, outputs: Sequence[Tensor], part: Part) -> Tensor:
        mask = part.batch.get("attention_mask")
        stored = top_logits_of(part.batch)
        if stored is not None:
            assert isinstance(distance, OfTop)
            return mean(distance.each_of_top(outputs[0], *stored), mask)
        return distance(
            outputs, self._dense(part.batch) if part.dense is None else part.dense, mask
        )

    def _chunked(
        self, found: tuple[Tensor, ...], part: Part
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        batch, labels, a, c, teacher = part.batch, None, 0.0, None, None
        stored = top_logits_of(batch)
        if self.task is not None:
            labels = self.task.targets(batch)
            assert labels is not None
            items = self.task.items(batch) if part.labels is None else part.labels
            # As the mean over no labels, which is not a number either.
            a = self.settings.task / items if items else float("nan")
            labels = labels.flatten()
        if self.distance is not None:
            if stored is None:
                assert self.teacher is not None
                teacher = self.teacher.side(batch, found[0].device)
            c = self._weights(batch, found[0]) * part.share
        flat = None if stored is None else stored.flat()
        terms = Terms(labels, a, self.distance, teacher, c, self._dtype, flat)
        total, task, distance = chunked_loss(side_of(self.program, found), terms)
        return (
            total,
            None if self.task is None else task / self.settings.task,
            None if self.distance is None else distance,
        )

    def _weights(self, batch: Batch, x: Tensor) -> Tensor:
        """What the mean over the tokens of a batch gives each of them, `[tokens]`."""
        mask = batch.get("attention_mask")
        if mask is None or mask.shape != x.shape[:-1]:
            mask = x.new_ones(x.shape[:-1])
        weights = mask.flatten().float()
        return weights / weights.sum()

    def _dense(self, batch: Batch) -> tuple[Tensor, ...]:
        assert self.teacher is not None
        return self.teacher.outputs(inputs_of(batch), self.accelerator.device)

    def _tokens(self, batch: Batch) -> float:
        """How many tokens a batch has distances of, or sequences where each has one or as many as others."""
        mask = batch.get("attention_mask")
        if self._by_token and mask is not None:
            return float(mask.sum())
        return float(len(next(iter(batch.values()))))

    def _over_processes(self, mine: float) -> float:
        """The mean over processes, whose gradients are averaged too."""
        if self.accelerator.num_processes == 1:
            return mine
        value = torch.tensor(float(mine), device=self.accelerator.device)
        return float(self.accelerator.reduce(value, "mean"))
