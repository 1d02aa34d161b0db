"""The training loop: optimise the rewritten program with accelerate, seeded, resumable at any checkpoint."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from sparsify import ranks
from sparsify.data.domains import DomainData
from sparsify.data.sequences import Data
from sparsify.errors import SparsifyError
from sparsify.ir.program import Program
from sparsify.train.checkpoint import latest, restore, store
from sparsify.train.domains import Constant, Dynamic
from sparsify.train.following import Following
from sparsify.train.forward import Teacher, Trained
from sparsify.train.heap import give_back
from sparsify.train.learned_masks import LearnedMasks
from sparsify.train.losses import Distillation
from sparsify.train.moving_masks import AdaptiveMasks
from sparsify.train.objective import Objective
from sparsify.train.omitting import Omitting
from sparsify.train.optimizer import Rule, SparseAdamW
from sparsify.train.parallel import check_shares, mean_over_ranks, prepared, seed_step
from sparsify.train.precision import accelerating
from sparsify.train.schedules import factor
from sparsify.train.settings import Figures, Settings, Sparse
from sparsify.train.sharded_state import Parts
from sparsify.train.shards import Shards, sharding, spread
from sparsify.train.steps import step_indices
from sparsify.train.validation import Validation


def train(
    program: Program,
    data: Data,
    settings: Settings,
    *,
    dense: Program | None = None,
    distillation: Distillation | None = None,
    sparse: Sparse | None = None,
    omission: Callable[[float], float] | None = None,
    domains: Constant | Dynamic | None = None,
    learned: LearnedMasks | None = None,
    device: str = "cpu",
    scratch: Path | None = None,
    on_step: Callable[[Figures], None] = lambda figures: None,
) -> list[Figures]:
    """Optimise the parameters that require gradients, in place; returns one row of figures a step.

    With `scratch`, goes on from the last checkpoint found there, bitwise as if never interrupted.
    With `sparse`, rows hold what `AdaptiveMasks.refresh` tells, and the last one the loss on its batch
    of the dense weights (`unpruned`) and of the masked ones (`pruned`). `omission` gives
    the omission rate for a fraction of the steps; rows hold what `Omitting.figures` tells. `learned` are
    masks that learn too; rows hold what `LearnedMasks.figures` tells. `domains` says
    when the held-out losses of domains are measured and whether weights follow them; rows hold what
    `Following` tells. Without it weights stay and nothing is measured. Raises SparsifyError when the loss is
    no longer finite; checkpoints from before then stay.
    """
    check_shares(settings, measures=domains is not None and isinstance(data, DomainData))
    with (
        torch.random.fork_rng(devices=[]),
        accelerating(device, settings.precision) as accelerator,
    ):
        torch.manual_seed(settings.seed)
        twin = None if dense is None else Teacher(dense, settings.precision)
        objective = Objective(program, settings, accelerator, twin, distillation)
        validation = None
        if domains is not None:
            validation = Validation(program, twin, settings, accelerator, domains.samples)
        run = _Run(program, data, settings, objective, sparse, omission, learned, accelerator)
        if isinstance(data, DomainData):
            run.follow(data, domains or Constant(), validation)
        done, history = 0, list[Figures]()
        if scratch is not None and (found := latest(scratch)) is not None:
            done, history = restore(run.accelerator, found, run.parts)
        with run.training(), spread(twin, accelerator.device):
            for step in range(done, settings.steps):
                figures = run.step(step)
                last = step + 1 == settings.steps
                history.append({**figures, **run.finish(step)} if last else figures)
                on_step(history[-1])
                if scratch is not None and (step + 1) % settings.save_every == 0 and not last:
                    store(run.accelerator, scratch, step + 1, history, run.parts)
        run.model.eval()
        if run.shards is not None:
            run.shards.gather()
    return history


def _optimizer(
    trained: list[dict[str, Any]], settings: Settings, rule: Rule | None
) -> torch.optim.Optimizer:
    """The optimiser of a run over groups of tensors; betas of AdamW are those of language models."""
    how: Any = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(trained, momentum=settings.momentum, **how)
    how["betas"] = (0.9, 0.95)
    if rule is not None:
        return SparseAdamW(trained, rule, **how)
    # In one sweep over each tensor where tensors are whole: without it a step writes five more.
    return torch.optim.AdamW(trained, **how, fused=not sharding())


class _Run:
    """Model, optimiser and losses of one training run."""

    def __init__(
        self,
        program: Program,
        data: Data,
        settings: Settings,
        objective: Objective,
        sparse: Sparse | None,
        omission: Callable[[float], float] | None,
        learned: LearnedMasks | None,
        accelerator: Accelerator,
    ) -> None:
        self.program, self.data, self.settings = program, data, settings
        self.objective, self.accelerator, self.learned = objective, accelerator, learned
        model = Trained(program, settings.recompute)
        self.shards = Shards(program, model, accelerator.device) if sharding() else None
        # By name: a program loaded from disk may hold its parameters in another order, and the
        # optimiser's state is kept by number.
        named = sorted(program.module.named_parameters(), key=lambda item: item[0])
        trained = [parameter for _, parameter in named if parameter.requires_grad]
        if not trained:
            raise SparsifyError(
                "no parameter is to be trained; choose update=all or insert a branch"
            )
        groups = [{"params": trained}, *self._others()]
        optimizer = _optimizer(groups, settings, None if sparse is None else sparse.rule)
        self.rules = optimizer if isinstance(optimizer, SparseAdamW) else None
        self.model, self.optimizer = prepared(self.accelerator, model, optimizer)
        # Asked of the optimiser: sharding puts other tensors in place of the parameters.
        groups = self.optimizer.param_groups
        self.trained = [parameter for group in groups for parameter in group["params"]]
        self.peaks = [group["lr"] for group in groups]
        self.model.train()
        # After the program has moved to its device, where its masks are.
        self.masks: AdaptiveMasks | None = None
        if sparse is not None:
            self.masks = AdaptiveMasks(program, sparse.refresh, dense_forward=sparse.dense_forward)
            self.accelerator.register_for_checkpointing(self.masks)
            if self.rules is not None:
                self.rules.masks = self.masks.of_parameters()
        self.rate = omission
        self.omitting: Omitting | None = None
        if omission is not None:
            self.omitting = Omitting(program, seed=settings.seed)
            self.accelerator.register_for_checkpointing(self.omitting)
        self.following: Following | None = None

    @property
    def parts(self) -> Parts:
        """What each rank writes a part of in a checkpoint, where tensors are cut."""
        return Parts(self.shards is not None, self.program, self.optimizer, self.masks)

    def follow(
        self, data: DomainData, how: Constant | Dynamic, validation: Validation | None
    ) -> None:
        """Draw the sequences of steps by the weights of their domains, which `validation` measures."""
        losses, dense = None, None
        if validation is not None:
            losses = partial(validation.losses, self.model, data)
            dense = partial(validation.dense_losses, data) if how.measures_dense else None
        self.following = Following(data, how, self.settings.seed, losses, dense)
        self.accelerator.register_for_checkpointing(self.following)

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
        seed_step(settings.seed, step)
        part = factor(settings.shape, step, settings.steps, settings.warmup, settings.floor)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * part
        moved = self._before(step)
        figures, tokens = self._gradients(step)
        if settings.clip:
            self.accelerator.clip_grad_norm_(self.trained, settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.settings.recompute != "none":
            give_back()
        if self.omitting is not None:
            moved = {**moved, **self.omitting.figures()}
        seconds = time.perf_counter() - started
        done = {"step": step + 1, "lr": settings.lr * part}
        return {**done, **figures, **moved, "tokens_per_s": tokens / seconds}

    def _gradients(self, step: int) -> tuple[Figures, int]:
        """Put the gradients of a step into the parameters; its losses, and its number of tokens."""
        parts = self.objective.parts(self._batches(step))
        figures: Figures = {}
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            if self.learned is not None:
                self.learned.place()
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                loss, found = self.objective(self.model, part)
                if not math.isfinite(found["loss"]):
                    raise SparsifyError(
                        f"the loss became {found['loss']} at step {step + 1} of {self.settings.steps}; lower "
                        f"lr (now {self.settings.lr:g}); checkpoints from before stay"
                    )
                self.accelerator.backward(loss)
            del loss
            if self.settings.recompute != "none":
                give_back()
            figures = {key: figures.get(key, 0.0) + value for key, value in found.items()}
        if self.learned is not None:
            self.accelerator.backward(self.learned.penalty())
            self.learned.share_gradients()
        ids = (part.batch.get("input_ids") for part in parts)
        tokens = sum(each.numel() for each in ids if each is not None)
        return mean_over_ranks(figures), int(ranks.totals(tokens)[0])

    def finish(self, step: int) -> Figures:
        """Put the masks in and measure domains."""
        figures = self._finish_masks(step)
        if self.following is None:
            return figures
        if self.learned is not None:
            self.learned.put(self.learned.settled())
        return {**figures, **self.following.finish()}

    def _finish_masks(self, step: int) -> Figures:
        """Put the masks in; the loss of the dense weights, and of the masked ones, which is the model's."""
        if self.masks is None:
            return {}
        with self.masks.lifted():
            unpruned = self._evaluate(step)
        self.masks.finish()
        return {**self.masks.figures(), "unpruned": unpruned, "pruned": self._evaluate(step)}

    @torch.no_grad()
    def _evaluate(self, step: int) -> float:
        self.model.eval()
        parts = self.objective.parts(self._batches(step))
        mine = sum(self.objective(self.model, part)[1]["loss"] for part in parts)
        return mean_over_ranks({"loss": mine})["loss"]

    def _before(self, step: int) -> Figures:
        """What is due before a step: its omission rate, new masks, and how far the run is."""
        if self.omitting is not None and self.rate is not None:
            self.omitting.begin(step, self.rate(step / self.settings.steps))
        found: Figures = {}
        if self.learned is not None:
            self.learned.begin(step, step / self.settings.steps)
            found = self.learned.figures()
        if self.following is not None:
            if self.learned is not None:
                self.learned.place_soft()
            found = {**self.following.begin(step), **found}
        if self.masks is None:
            return found
        figures = {**found, **(self.masks.refresh(step) if self.masks.due(step) else {})}
        if self.rules is None:
            return figures
        self.rules.progress = step / self.settings.steps
        return {"strength": self.rules.rule.strength(self.rules.progress), **figures}

    def _others(self) -> list[dict[str, Any]]:
        """What learns beside parameters, with learning rates of its own."""
        if self.learned is None:
            return []
        self.learned.to(self.accelerator.device)
        self.accelerator.register_for_checkpointing(self.learned)
        return self.learned.groups()

    def _batches(self, step: int) -> list[dict[str, Tensor]]:
        """The micro-batches of a step, this process's part of each."""
        batch, count = self.settings.batch, self.settings.accumulate
        if self.following is not None:
            indices = self.following.indices(step, batch * count)
        else:
            indices = step_indices(len(self.data), self.settings.seed, step, batch * count)
        return [self._batch(indices[i * batch : (i + 1) * batch]) for i in range(count)]

    def _batch(self, indices: list[int]) -> dict[str, Tensor]:
        batch = self.data.batch(ranks.own(indices))
        return {key: value.to(self.accelerator.device) for key, value in batch.items()}
