"""The training loop: optimise the rewritten program with accelerate, seeded, resumable at any checkpoint."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from sparsify.errors import SparsifyError
from sparsify.ir.program import Program
from sparsify.train.checkpoint import latest, restore, store
from sparsify.train.data import Data, order
from sparsify.train.losses import TaskLoss
from sparsify.train.schedules import Shape, factor
from sparsify.train.wrapped import ProgramModel

Outputs = Sequence[Tensor]
# Distance of the outputs to the dense twin's, given the attention mask of the batch.
Distillation = Callable[[Outputs, Outputs, Tensor | None], Tensor]
Figures = dict[str, float]


@dataclass(frozen=True)
class Settings:
    """How to train: `loss = task * task loss + distillation`, AdamW, decoupled weight decay.

    `batch` sequences a step over all processes, `lr` the peak learning rate, `warmup` a fraction of `steps`,
    `clip` the largest gradient norm (0: none), `save_every` steps between checkpoints.
    """

    steps: int
    batch: int
    lr: float
    shape: Shape
    warmup: float
    weight_decay: float
    clip: float
    task: float
    save_every: int
    seed: int


def train(
    program: Program,
    data: Data,
    settings: Settings,
    *,
    dense: Program | None = None,
    distillation: Distillation | None = None,
    device: str = "cpu",
    scratch: Path | None = None,
    on_step: Callable[[Figures], None] = lambda figures: None,
) -> list[Figures]:
    """Optimise the parameters that require gradients, in place; returns one row of figures a step.

    With `scratch`, goes on from the last checkpoint found there, bitwise as if never interrupted.
    Raises SparsifyError when the loss is no longer finite; checkpoints from before then stay.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        run = _Run(program, data, settings, dense, distillation, device)
        done, history = 0, list[Figures]()
        if scratch is not None and (found := latest(scratch)) is not None:
            done, history = restore(run.accelerator, found)
        for step in range(done, settings.steps):
            figures = run.step(step)
            history.append(figures)
            on_step(figures)
            last = step + 1 == settings.steps
            if scratch is not None and (step + 1) % settings.save_every == 0 and not last:
                store(run.accelerator, scratch, step + 1, history)
        run.model.eval()
    return history


# One permutation serves a whole epoch of steps; a step may reach into the next one.
_order = lru_cache(maxsize=2)(order)


def step_indices(size: int, seed: int, step: int, batch: int) -> list[int]:
    """The sequences of one step: each epoch is one permutation, taken `batch` at a time without gaps."""
    indices = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, within = divmod(position, size)
        indices.append(int(_order(size, seed, epoch)[within]))
    return indices


class _Run:
    """Model, optimiser and losses of one training run."""

    def __init__(
        self,
        program: Program,
        data: Data,
        settings: Settings,
        dense: Program | None,
        distillation: Distillation | None,
        device: str,
    ) -> None:
        self.program, self.data, self.settings = program, data, settings
        self.dense, self.distillation = dense, distillation
        # Asked before the model is wrapped: finding out runs the program in evaluation mode.
        self.task_loss = TaskLoss(program) if settings.task else None
        self.accelerator = Accelerator(cpu=device == "cpu")
        # By name: a program loaded from disk may hold its parameters in another order, and the
        # optimiser's state is kept by number.
        named = sorted(program.module.named_parameters(), key=lambda item: item[0])
        trained = [parameter for _, parameter in named if parameter.requires_grad]
        if not trained:
            raise SparsifyError(
                "no parameter is to be trained; choose update=all or insert a branch"
            )
        optimizer = torch.optim.AdamW(
            trained, lr=settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.95)
        )
        self.trained = trained
        self.model, self.optimizer = self.accelerator.prepare(ProgramModel(program), optimizer)
        self.model.train()

    def step(self, step: int) -> Figures:
        """One optimiser step; the figures to show."""
        started = time.perf_counter()
        settings = self.settings
        lr = settings.lr * factor(settings.shape, step, settings.steps, settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batch = self._batch(step)
        loss, figures = self._loss(batch)
        if not math.isfinite(float(loss.detach())):
            raise SparsifyError(
                f"the loss became {float(loss.detach())} at step {step + 1} of {settings.steps}; lower lr "
                f"(now {settings.lr:g}); checkpoints from before stay"
            )
        self.accelerator.backward(loss)
        if settings.clip:
            self.accelerator.clip_grad_norm_(self.trained, settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - started
        tokens = batch["input_ids"].numel() / seconds if "input_ids" in batch else 0.0
        return {"step": step + 1, "lr": lr, **figures, "tokens_per_s": tokens}

    def _batch(self, step: int) -> dict[str, Tensor]:
        indices = step_indices(len(self.data), self.settings.seed, step, self.settings.batch)
        mine = indices[self.accelerator.process_index :: self.accelerator.num_processes]
        batch = self.data.batch(mine)
        return {key: value.to(self.accelerator.device) for key, value in batch.items()}

    def _loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Figures]:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        result: Any = self.model(**inputs)
        outputs = [result[name] for name in self.program.source.outputs]
        total = outputs[0].new_zeros(())
        figures = {}
        if self.task_loss is not None:
            task = self.task_loss(outputs, batch)
            total = total + self.settings.task * task
            figures["task"] = float(task.detach())
        if self.distillation is not None:
            assert self.dense is not None
            distance = self.distillation(
                outputs, self.dense.run(inputs), batch.get("attention_mask")
            )
            total = total + distance
            figures["distill"] = float(distance.detach())
        return total, {"loss": float(total.detach()), **figures}
