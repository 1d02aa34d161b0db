"""How a program is trained: what the loop is told."""

from dataclasses import dataclass
from typing import Literal

from sparsify.train.moving_masks import Refresh
from sparsify.train.optimizer import Rule
from sparsify.train.schedules import Shape

Figures = dict[str, float]
Precision = Literal["float32", "bf16"]
Optimizer = Literal["adamw", "sgd"]
Recompute = Literal["none", "layers", "selective"]


@dataclass(frozen=True)
class Settings:
    """How to train: `loss = task * task loss + distillation`, AdamW with decoupled weight decay, or SGD.

    `batch` sequences a micro-batch over all processes, `accumulate` micro-batches a step, `lr` the peak
    learning rate, `warmup` a fraction of `steps`, `clip` the largest gradient norm (0: none), `save_every`
    steps between checkpoints. In `precision` bf16 products are taken in bfloat16 of float32 weights.
    `recompute` says what the backward pass computes again in place of keeping it: nothing, whole layers, or
    (`selective`) all of them but products and attention. `balance` weighs the loss that spreads tokens over
    experts, `momentum` is that of `optimizer` sgd, `floor` the fraction of `lr` that a falling rate falls to.
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
    accumulate: int = 1
    precision: Precision = "float32"
    recompute: Recompute = "none"
    balance: float = 0.0
    optimizer: Optimizer = "adamw"
    momentum: float = 0.9
    floor: float = 0.0


@dataclass(frozen=True)
class Sparse:
    """Training in which the masks move too: when they are chosen, and how masked weights are pulled to zero.

    Without a rule nothing pulls, and the optimiser is that of training without masks. With `dense_forward`
    masked weights take part until the end, when the masks are put in (CAST).
    """

    refresh: Refresh
    rule: Rule | None = None
    dense_forward: bool = False
