"""train: optimise weights of the rewritten program.

    minimise  task * task_loss(outputs, labels) + weight * distance(outputs, dense outputs)

by AdamW or SGD. Masks stay as they are: a masked weight enters the program as zero and gets no gradient.
With `masks=every{...}` they are chosen anew as the weights move, and every weight learns: a masked
one gets the gradient of the zero in its place (DPF, AST) or takes part until the end (CAST,
`decay=adams`), and `decay` pulls it towards zero. With `masks=learned{...}` those of layers, heads, channels
and the residual width are drawn from log-alphas that learn with the weights, to a target shape

    minimise  loss + sum over kinds of mean over rows of  lambda (e - t) + phi (e - t)^2

where e is the expected sparsity of a row, t its target, and lambda and phi rise as long as e is not t; in the
end exactly as many stay, and weights take soft values in (Sheared LLaMA). With `schedule=lors{...}` heads
and channels are left out of each step, at a rate that falls to zero (SAT). Data with domains is drawn by
their weights; with `domains=dynamic{...}` these follow how far each domain's held-out loss is above its
reference (Sheared LLaMA's dynamic batch loading). The dense twin is the program as it was before the first
pass. Resumes at its last checkpoint, bitwise.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from sparsify.data.domains import DomainData
from sparsify.data.sequences import Data
from sparsify.engine.contract import FUNCTION, Context, Effect, Moves, Pass, effect
from sparsify.engine.stored_twin import data_and_twin
from sparsify.errors import OptionError
from sparsify.ir.features.weight_mask import masked_linears
from sparsify.ir.program import Program
from sparsify.ir.run.recomputed_weights import recomputed_weights
from sparsify.select.groups import Amount, heads_left
from sparsify.select.kinds.catalogue import KINDS
from sparsify.select.learned import NOT_UNDER, check_learned, learning_of
from sparsify.select.moving import check_reach, sparse_of
from sparsify.select.target_shape import Heads, Learned
from sparsify.select.weights import Target, check_axes
from sparsify.train.domains import CONSTANT, Constant, Dynamic, check_domains, unmeasured
from sparsify.train.every import Every
from sparsify.train.following import note_of
from sparsify.train.loop import train
from sparsify.train.losses import check_labels
from sparsify.train.options import AdamS, ArsSte, Kl, Lors, Squared, SrSte
from sparsify.train.plan import Step
from sparsify.train.schedules import Shape, factor
from sparsify.train.settings import Figures, Optimizer, Precision, Recompute, Settings
from sparsify.train.stored import is_whole
from sparsify.train.trainable import select_trainable

_EPOCHS = 8  # that one step may hold: small data repeats, but nobody means a thousand times


@dataclass(frozen=True)
class Train(Pass):
    """Train for `steps` steps of `accumulate` micro-batches of `batch` sequences each.

    The gradients of a step are those of its `batch * accumulate` sequences at once: losses are means over
    all labels and tokens of the step. With `precision=bf16` products are taken in bfloat16 of float32
    weights, and the dense twin's weights are bfloat16. With `recompute=layers` the backward pass computes
    the insides of layers again, and only what passes between layers is kept; `selective` keeps products
    and attention too and computes again what is cheap.

    `update` names what learns: `lora` (branches only), `all`, `norms` (branches, norms and biases),
    `adapters` (the branches beside linears only), `experts` (those beside linears, their routers, and
    branches) or `prompt` (the rows of a soft prompt). `schedule` is that of the learning rate, or `lors`:
    that of omission too. `task` weighs the task loss, `distill` adds a distance to the dense twin. `balance`
    weighs the loss that spreads tokens over experts: `E sum_i f_i P_i`, the mean over all routers, with f_i
    the share of tokens that go to expert i and P_i its mean probability. `masks` says when masks are chosen
    anew, `decay` how masked weights are pulled to zero, which is a part of AdamW's step. `optimizer=sgd` has
    a `momentum`, and its weight decay is a part of the gradient. `domains` says how data with domains is
    drawn, and when the loss of what each holds out is measured. A learning rate that falls, falls to the
    fraction `floor` of `lr`. `save_every` steps lie between checkpoints.
    """

    name: ClassVar[str] = "train"
    moves: ClassVar[Moves] = FUNCTION
    steps: int
    batch: int = 8
    lr: float = 1e-3
    update: Literal["all", "lora", "norms", "adapters", "experts", "prompt"] = "all"
    schedule: Shape | Lors = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip: float = 1.0
    task: float = 1.0
    distill: Kl | Squared | None = None
    masks: Every | Learned | None = None
    decay: SrSte | ArsSte | AdamS | None = None
    save_every: int = 100
    accumulate: int = 1
    precision: Precision = "float32"
    recompute: Recompute = "none"
    balance: float = 0.0
    domains: Constant | Dynamic = CONSTANT
    optimizer: Optimizer = "adamw"
    momentum: float = 0.9
    floor: float = 0.0

    def effect(self) -> Effect:
        """Needs data, branches when only they learn, moving masks, and the dense twin to distil."""
        # A prompt that is off would learn nothing.
        needed = {"prompt": ["prompt", "prompted"], "all": [], "norms": []}
        needs: list[str] = [*needed.get(self.update, [self.update])]
        bars: list[str] = []
        if isinstance(self.masks, Every):
            needs += [f"mask.{kind}" for kind in self.masks.of]
            needs += ["stats"] if self.masks.score == "wanda" else []
            # What else reads a masked input, or rounds it, would see the mask lifted.
            bars = ["adapters", "experts", "slorb", "quantizers"] if self.masks.groups else []
        elif self.masks is not None:
            needs += [KINDS[kind].feature for kind in self.masks.sizes()]
            bars = [*NOT_UNDER]
        wants = ["data"]
        if self._wants_dense:
            wants.append("dense.bf16" if self.precision == "bf16" else "dense")
        if isinstance(self.schedule, Lors):
            return effect(needs=[*needs, "omission"], wants=wants, bars=bars)
        # Without a schedule that says how much, a program that can omit would quietly train dense.
        return effect(needs=needs, wants=wants, bars=[*bars, "omission"])

    def check(self, program: Program) -> None:
        """Sizes must be positive and there must be a loss."""
        if min(self.steps, self.batch, self.save_every, self.accumulate) < 1 or self.lr <= 0:
            raise OptionError("steps, batch, accumulate, save_every and lr must be positive")
        if not 0 <= self.momentum < 1:
            raise OptionError(f"momentum={self.momentum} is not in [0, 1)")
        for name, part in (("warmup", self.warmup), ("floor", self.floor)):
            if not 0 <= part <= 1:
                of = "the steps" if name == "warmup" else "lr"
                raise OptionError(f"{name}={part} is a fraction of {of}, from 0 to 1")
        if self.task == 0 and self.distill is None:
            raise OptionError("task=0 without distill leaves no loss")
        if isinstance(self.distill, Kl):
            self.distill.check()
        if isinstance(self.schedule, Lors):
            self.schedule.check()
        self._check_sparse(program)
        if isinstance(self.masks, Learned):
            if self.update != "all" or isinstance(self.schedule, Lors) or self.optimizer != "adamw":
                raise OptionError(
                    "masks=learned moves whole weights by AdamW, none of them left out: it needs update=all, "
                    "and neither schedule=lors nor optimizer=sgd"
                )
            check_learned(program, self.masks)

    def heads_left(self, program: Program) -> Heads | None:
        """Those of the target shape, where masks are learnt."""
        sizes = self.masks.sizes() if isinstance(self.masks, Learned) else {}
        if "heads" not in sizes:
            return None
        left = heads_left(program, Amount(sizes=sizes))
        return None if left is None else Heads(*left)

    def check_data(self, program: Program, data: Data) -> None:
        """A step must not go through the data over and over, and labels of tokens need logits for them."""
        sequences = self.batch * self.accumulate
        parts: list[tuple[str, float, int]] = [("the data", sequences, len(data))]
        if isinstance(data, DomainData):
            parts = [
                (f"the domain '{domain.name}'", sequences * domain.weight, len(domain.data))
                for domain in data.domains
            ]
        for what, drawn, size in parts:
            if drawn > _EPOCHS * size:
                times = f" accumulate={self.accumulate}" if self.accumulate > 1 else ""
                raise OptionError(
                    f"batch={self.batch}{times} goes through the {size} sequences of {what} "
                    f"{drawn / size:,.0f} times a step; take a smaller batch or bring more text"
                )
        check_domains(self.domains, program, data, self.steps)
        if self.task:
            instead = "train a model with a head for them, or by distillation only (task=0)"
            check_labels(program, data, instead)

    def rewrite(self, program: Program, context: Context) -> int:
        """Train in place; returns the number of tensors that learnt."""
        assert context.data is not None
        moving = self.masks if isinstance(self.masks, Every) else None

        def show(figures: Figures) -> None:
            context.progress.advance(**figures)

        settings = self._settings(context.seed)
        data, dense = data_and_twin(program, context, self.distill, settings)
        context.progress.start(self.name, self.steps)
        unknown = unmeasured(program, data)
        # Whole weights that do not learn need no copy of their product with the mask.
        lean = recomputed_weights(program) if self.update == "lora" else nullcontext()
        with (
            select_trainable(program, self.update) as trained,
            lean,
            learning_of(program, self.masks, context.seed, context.notes) as learned,
        ):
            history = train(
                program,
                data,
                settings,
                dense=dense if self._wants_dense else None,
                distillation=self.distill,
                sparse=sparse_of(moving, self.decay, self.steps) if moving else None,
                omission=self.schedule.omission if isinstance(self.schedule, Lors) else None,
                learned=learned,
                domains=None if unknown else self.domains,
                device=context.device,
                scratch=context.scratch,
                on_step=show,
            )
        context.figures.setdefault(self.name, []).extend(history)
        if isinstance(data, DomainData):
            told = f"no loss of domains is measured: {unknown}"
            context.notes.append(told if unknown else note_of(self.domains, data.names, history))
        return len(trained)

    def step(self, program: Program, length: int) -> Step:
        """What a step takes is known from the options, and for a dense twin from the weights."""
        half = self.precision == "bf16"
        sizes = (v.numel() * (2 if half else v.element_size()) for v in program.module.parameters())
        return Step(
            batch=self.batch,
            length=length,
            accumulate=self.accumulate,
            recompute=self.recompute,
            bf16=half,
            update=self.update,
            moments=1 if self.optimizer == "sgd" else 2,
            twin=sum(sizes) if self._wants_dense else 0,
        )

    def _settings(self, seed: int) -> Settings:
        return Settings(
            steps=self.steps,
            batch=self.batch,
            lr=self.lr,
            shape=self._shape(),
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            clip=self.clip,
            task=self.task,
            save_every=self.save_every,
            seed=seed,
            accumulate=self.accumulate,
            precision=self.precision,
            recompute=self.recompute,
            balance=self.balance,
            optimizer=self.optimizer,
            momentum=self.momentum,
            floor=self.floor,
        )

    @property
    def _wants_dense(self) -> bool:
        stored = self.distill.stored if isinstance(self.distill, Kl) else None
        asked = self.distill is not None and not (stored is not None and is_whole(Path(stored)))
        return asked or self.domains.measures_dense

    def _check_sparse(self, program: Program) -> None:
        if not isinstance(self.masks, Every):
            if self.decay is not None:
                raise OptionError(
                    "decay pulls on weights whose masks move; add masks=every{steps=10}"
                )
            return
        if self.update != "all":
            raise OptionError(
                f"masks=every moves whole weights: it needs update=all, not {self.update}"
            )
        self.masks.check(self.steps)
        check_axes(program, masked_linears(program), Target(pattern=self.masks.nm))
        if self.decay is not None:
            self._check_decay(self.decay, self.masks)
        if isinstance(self.decay, AdamS):
            rates = [
                self.lr * factor(self._shape(), step, self.steps, self.warmup)
                for step in range(self.steps)
            ]
            check_reach(program, self.decay, self.masks.of, self.lr, rates)

    def _check_decay(self, rule: SrSte | ArsSte | AdamS, masks: Every) -> None:
        rule.check()
        if self.optimizer != "adamw":
            raise OptionError(
                f"decay={rule.name} is a part of AdamW's step; leave optimizer=sgd or decay out"
            )
        if masks.groups or not masks.feedback:
            which = f"of={','.join(masks.of)}" if masks.groups else "feedback=false"
            raise OptionError(
                f"decay={rule.name} pulls on single weights that learn; leave {which} out"
            )

    def _shape(self) -> Shape:
        """How the learning rate goes."""
        return self.schedule.shape if isinstance(self.schedule, Lors) else self.schedule
