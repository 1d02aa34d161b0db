"""train: optimise weights of the rewritten program.

    minimise  task * task_loss(outputs, labels) + weight * distance(outputs, outputs of the dense twin)

by AdamW. Masks stay as they are: a masked weight enters the program as zero and gets no gradient. The dense
twin is the program as it was before the first pass. Resumes at its last checkpoint, bitwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from sparsify.engine.contract import FUNCTION, Context, Effect, Moves, Pass, effect
from sparsify.engine.options import Options
from sparsify.errors import OptionError
from sparsify.ir.program import Program
from sparsify.train import losses
from sparsify.train.loop import Figures, Settings, train
from sparsify.train.schedules import Shape
from sparsify.train.trainable import select_trainable


@dataclass(frozen=True)
class Kl(Options):
    """`weight * T^2 KL(p_dense || p)` of the first output's softmax at temperature T, a token."""

    name: ClassVar[str] = "kl"
    weight: float = 1.0
    temperature: float = 1.0

    def __call__(
        self, outputs: Sequence[Tensor], dense: Sequence[Tensor], mask: Tensor | None
    ) -> Tensor:
        """The distance, a scalar."""
        return self.weight * losses.kl(outputs[0], dense[0], mask, self.temperature)


@dataclass(frozen=True)
class Squared(Options):
    """`weight * ||h - h_dense||^2 / ||h_dense||^2` of the first output's states; for encoders."""

    name: ClassVar[str] = "squared"
    weight: float = 1.0

    def __call__(
        self, outputs: Sequence[Tensor], dense: Sequence[Tensor], mask: Tensor | None
    ) -> Tensor:
        """The distance, a scalar."""
        return self.weight * losses.squared(outputs[0], dense[0], mask)


@dataclass(frozen=True)
class Train(Pass):
    """Train for `steps` steps of `batch` sequences.

    `update` names what learns: `lora` (branches only), `all`, or `norms` (branches, norms and biases).
    `task` weighs the task loss, `distill` adds a distance to the dense twin. `save_every` steps lie
    between checkpoints.
    """

    name: ClassVar[str] = "train"
    moves: ClassVar[Moves] = FUNCTION
    steps: int
    batch: int = 8
    lr: float = 1e-3
    update: Literal["all", "lora", "norms"] = "all"
    schedule: Shape = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip: float = 1.0
    task: float = 1.0
    distill: Kl | Squared | None = None
    save_every: int = 100

    def effect(self) -> Effect:
        """Needs data, branches when only they learn, and the dense twin to distil from."""
        wants = ["data"] + (["dense"] if self.distill is not None else [])
        return effect(needs=["lora"] if self.update == "lora" else [], wants=wants)

    def check(self, program: Program) -> None:
        """Sizes must be positive and there must be a loss."""
        if min(self.steps, self.batch, self.save_every) < 1 or self.lr <= 0:
            raise OptionError("steps, batch, save_every and lr must be positive")
        if not 0 <= self.warmup <= 1:
            raise OptionError(f"warmup={self.warmup} is a fraction of the steps, from 0 to 1")
        if self.task == 0 and self.distill is None:
            raise OptionError("task=0 without distill leaves no loss")
        if isinstance(self.distill, Kl) and self.distill.temperature <= 0:
            raise OptionError(f"temperature={self.distill.temperature} must be positive")

    def rewrite(self, program: Program, context: Context) -> int:
        """Train in place; returns the number of tensors that learnt."""
        assert context.data is not None
        settings = Settings(
            steps=self.steps,
            batch=self.batch,
            lr=self.lr,
            shape=self.schedule,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            clip=self.clip,
            task=self.task,
            save_every=self.save_every,
            seed=context.seed,
        )
        context.progress.start(self.name, self.steps)

        def show(figures: Figures) -> None:
            context.progress.advance(**figures)

        with select_trainable(program, self.update) as trained:
            history = train(
                program,
                context.data,
                settings,
                dense=context.dense if self.distill is not None else None,
                distillation=self.distill,
                device=context.device,
                scratch=context.scratch,
                on_step=show,
            )
        context.figures.setdefault(self.name, []).extend(history)
        return len(trained)
