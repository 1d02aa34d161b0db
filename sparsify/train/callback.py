"""Moving masks and omission under the Hugging Face Trainer."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sparsify.train.moving_masks import AdaptiveMasks
from sparsify.train.omitting import Omitting
from sparsify.train.optimizer import SparseAdamW


class AdaptiveMasksCallback(TrainerCallback):
    """Chooses masks anew and tells the optimiser how far the run is, as `train{masks=every}` does.

    Give Trainer the same optimiser: `Trainer(..., optimizers=(optimizer, None), callbacks=[callback])`; with
    none here (DPF) Trainer has its own, and nothing pulls on masked weights.
    The graph has straight-through masks from the beginning of training to its end, when the last masks
    are put in. `rows` collects the figures of each refresh.
    """

    def __init__(self, masks: AdaptiveMasks, optimizer: SparseAdamW | None = None) -> None:
        self.masks, self.optimizer = masks, optimizer
        self.rows: list[dict[str, float]] = []
        self._training = ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Straight-through masks go into the graph."""
        if self.optimizer is not None:
            self.optimizer.masks = self.masks.of_parameters()
        self._training.enter_context(self.masks.training())

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Choose masks where they are due."""
        step = state.global_step
        if self.masks.due(step):
            self.rows.append({"step": step, **self.masks.refresh(step)})
        if self.optimizer is not None:
            self.optimizer.progress = step / state.max_steps

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Put the last masks in."""
        self._training.close()
        self.masks.finish()


class OmissionCallback(TrainerCallback):
    """Omits neurons as `train{schedule=lors{...}}` does; the optimiser is Trainer's own.

    `rate` gives the omission rate for a fraction of the steps. The choice of a step is shared by its
    micro-batches and ranks; evaluation is dense. `rows` collects the figures of each step.
    """

    def __init__(self, omitting: Omitting, rate: Callable[[float], float]) -> None:
        self.omitting, self.rate = omitting, rate
        self.rows: list[dict[str, float]] = []
        self._training = ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Choices go into the graph."""
        self._training.enter_context(self.omitting.training())

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """The rate of the step, and a fresh choice."""
        self.omitting.begin(state.global_step, self.rate(state.global_step / state.max_steps))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """The figures of the step."""
        self.rows.append({"step": state.global_step, **self.omitting.figures()})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """The graph is as it was."""
        self._training.close()
