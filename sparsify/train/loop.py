"""The training loop: optimise the rewritten program with accelerate, seeded, resumable at any checkpoint."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from sparsify.data.sequences import Data, order
from sparsify.errors import SparsifyError
from sparsify.ir.program import Program
from sparsify.train.checkpoint import latest, restore, store
from sparsify.train.losses import TaskLoss
from sparsify.train.moving_masks import AdaptiveMasks, Refresh
from sparsify.train.omitting import Omitting
from sparsify.train.optimizer import Rule, SparseAdamW
from sparsify.train.program_model import ProgramModel
from sparsify.train.schedules import Shape, factor

Outputs = Sequence[Tensor]
# Distance of the outputs to the dense twin's, given the attention mask of the batch.
Distillation = Callable[[Outputs, Outputs, Tensor | None], Tensor]
Figures = dict[str, float]


@dataclass(frozen=True)
class Settings:
    """How to train: `loss = task * task loss + distillation`, AdamW, decoupled weight decay.

    `batch` sequences a step over all processes, `lr` the peak learning rate, `warmup` a fraction of
    `steps`, `clip` the largest gradient norm (0: none), `save_every` steps between checkpoints.
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


@dataclass(frozen=True)
class Sparse:
    """Training in which the masks move too: when they are chosen, and how masked weights are pulled to zero.

    With `dense_forward` masked weights take part until the end, when the masks are put in (CAST).
    """

    refresh: Refresh
    rule: Rule
    dense_forward: bool = False


def train(
    program: Program,
    data: Data,
    settings: Settings,
    *,
    dense: Program | None = None,
    distillation: Distillation | None = None,
    sparse: Sparse | None = None,
    omission: Callable[[float], float] | None = None,
    device: str = "cpu",
    scratch: Path | None = None,
    on_step: Callable[[Figures], None] = lambda figures: None,
) -> list[Figures]:
    """Optimise the parameters that require gradients, in place; returns one row of figures a step.

    With `scratch`, goes on from the last checkpoint found there, bitwise as if never interrupted.
    With `sparse`, rows hold what `AdaptiveMasks.refresh` tells, and the last one, where masks are
    put in at the end, the loss on its batch before (`unpruned`) and after (`pruned`). `omission` gives
    the omission rate for a fraction of the steps; rows hold what `Omitting.figures` tells. Raises
    SparsifyError when the loss is no longer finite; checkpoints from before then stay.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        run = _Run(program, data, settings, dense, distillation, sparse, omission, device)
        done, history = 0, list[Figures]()
        if scratch is not None and (found := latest(scratch)) is not None:
            done, history = restore(run.accelerator, found)
        with run.training():
            for step in range(done, settings.steps):
                figures = run.step(step)
                last = step + 1 == settings.steps
                history.append({**figures, **run.finish(step)} if last else figures)
                on_step(figures)
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
        sparse: Sparse | None,
        omission: Callable[[float], float] | None,
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
        how: Any = {"lr": settings.lr, "weight_decay": settings.weight_decay, "betas": (0.9, 0.95)}
        self.rules = None if sparse is None else SparseAdamW(trained, sparse.rule, **how)
        optimizer = self.rules or torch.optim.AdamW(trained, **how)
        self.model, self.optimizer = self.accelerator.prepare(ProgramModel(program), optimizer)
        # Asked of the optimiser: sharding puts other tensors in place of the parameters.
        groups = self.optimizer.param_groups
        self.trained = [parameter for group in groups for parameter in group["params"]]
        self.model.train()
        # After the program has moved to its device, where its masks are.
        self.masks: AdaptiveMasks | None = None
        if sparse is not None and self.rules is not None:
            self.masks = AdaptiveMasks(program, sparse.refresh, dense_forward=sparse.dense_forward)
            self.rules.masks = self.masks.of_parameters()
            self.accelerator.register_for_checkpointing(self.masks)
        self.rate = omission
        self.omitting: Omitting | None = None
        if omission is not None:
            self.omitting = Omitting(program, seed=settings.seed)
            self.accelerator.register_for_checkpointing(self.omitting)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """The graph as it is to be trained, inside the block."""
        with contextlib.ExitStack() as stack:
            for part in (self.masks, self.omitting):
                if part is not None:
                    stack.enter_context(part.training())
            yield

    def step(self, step: int) -> Figures:
        """One optimiser step; the figures to show."""
        started = time.perf_counter()
        settings = self.settings
        lr = settings.lr * factor(settings.shape, step, settings.steps, settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        moved = self._before(step)
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
        if self.omitting is not None:
            moved = {**moved, **self.omitting.figures()}
        seconds = time.perf_counter() - started
        tokens = batch["input_ids"].numel() / seconds if "input_ids" in batch else 0.0
        return {"step": step + 1, "lr": lr, **figures, **moved, "tokens_per_s": tokens}

    def finish(self, step: int) -> Figures:
        """Put the masks in; where they were kept out of the graph, the loss before and after."""
        if self.masks is None:
            return {}
        figures = self.masks.figures()
        if self.masks.dense_forward:
            figures["unpruned"] = self._evaluate(step)
        self.masks.finish()
        if self.masks.dense_forward:
            figures["pruned"] = self._evaluate(step)
        return figures

    @torch.no_grad()
    def _evaluate(self, step: int) -> float:
        self.model.eval()
        return self._loss(self._batch(step))[1]["loss"]

    def _before(self, step: int) -> Figures:
        """What is due before a step: its omission rate, new masks, and how far the run is."""
        if self.omitting is not None and self.rate is not None:
            self.omitting.begin(step, self.rate(step / self.settings.steps))
        if self.masks is None or self.rules is None:
            return {}
        figures = self.masks.refresh() if self.masks.due(step) else {}
        self.rules.progress = step / self.settings.steps
        return {"strength": self.rules.rule.strength(self.rules.progress), **figures}

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
            task = self.task_loss(outputs, batch, self._items_of_all(batch))
            total = total + self.settings.task * task
            figures["task"] = float(task.detach())
        if self.distillation is not None:
            assert self.dense is not None
            distance = self.distillation(
                outputs, self.dense.run(inputs), batch.get("attention_mask")
            )
            total = total + distance * self._share_of_tokens(batch)
            figures["distill"] = float(distance.detach())
        return total, {"loss": float(total.detach()), **figures}

    def _items_of_all(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """What the sum of losses is divided by, so that the mean over processes is that over their labels."""
        if self.task_loss is None or self.accelerator.num_processes == 1 or "labels" not in batch:
            return None
        return self._mean_over_processes(self.task_loss.items(batch))

    def _share_of_tokens(self, batch: Mapping[str, Tensor]) -> Tensor | float:
        """How many tokens this process has for each that processes have on average."""
        mask = batch.get("attention_mask")
        if self.accelerator.num_processes == 1 or mask is None:
            return 1.0
        mine = int(mask.sum())
        return mine / self._mean_over_processes(mine)

    def _mean_over_processes(self, count: int) -> Tensor:
        mine = torch.tensor(float(count), device=self.accelerator.device)
        mean: Tensor = self.accelerator.reduce(mine, "mean")
        return mean
