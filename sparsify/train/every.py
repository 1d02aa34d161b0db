"""The part `masks=every{...}` of `train`: which masks move, how often, how sparse, and until when."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from sparsify.errors import OptionError
from sparsify.tensors.pattern import Pattern
from sparsify.text.options import Options

_SINGLE = frozenset({"weights", "convolutions"})


@dataclass(frozen=True)
class Every(Options):
    """Choose the masks `of` some kinds anew every `steps` steps, by |W| of all weights or Wanda's score.

    Of single weights N of M inputs stay (`pattern`; 2:4 where nothing is said), or a fraction `sparsity` of
    all of them together goes, by one threshold; of channels and heads a fraction of their parameters, by the
    sum of |W|. With `schedule=cubic` the sparsity rises from what masks leave out at the start, s_0:
    `sparsity + (s_0 - sparsity) (1 - t / t_end)^3`. The last choice is at `t_end`, the largest multiple of
    `steps` in a fraction `until` of the run; then masks are frozen. With `feedback` every weight learns, by
    the gradient at the masked weights (DPF, 2006.07253); without, what is masked gets no gradient and never
    comes back (gradual magnitude pruning, 1710.01878). Wanda's norms are those that `calibrate` measured,
    once.
    """

    name: ClassVar[str] = "every"
    steps: int = 10
    pattern: str | None = None
    score: Literal["magnitude", "wanda"] = "magnitude"
    sparsity: float | None = None
    schedule: Literal["constant", "cubic"] = "constant"
    until: float = 1.0
    feedback: bool = True
    of: tuple[Literal["weights", "convolutions", "channels", "heads"], ...] = ("weights",)

    @property
    def groups(self) -> bool:
        """Whether whole channels or heads go, not single weights."""
        return _SINGLE.isdisjoint(self.of)

    @property
    def nm(self) -> Pattern | None:
        """The pattern N:M; None where a sparsity is asked for."""
        return Pattern.parse(self.pattern or "2:4") if self.sparsity is None else None

    def end(self, steps: int) -> int:
        """The step of the last choice in a run of so many steps."""
        # A hair more: 0.29 of 100 steps are 28.999... in binary floats.
        last = min(math.floor(self.until * steps + 1e-9), steps - 1)
        return last // self.steps * self.steps

    def check(self, steps: int) -> None:
        """The options must fit each other and a run of so many steps; OptionError."""
        if self.steps < 1:
            raise OptionError(f"masks=every{{steps={self.steps}}} must be at least 1")
        if not 0 <= self.until <= 1:
            raise OptionError(f"until={self.until} is a fraction of the steps, from 0 to 1")
        self._check_kinds()
        self._check_amount()
        if self.schedule == "cubic" and self.end(steps) == 0:
            raise OptionError(
                f"masks=every{{steps={self.steps} until={self.until}}} chooses no mask in {steps} steps, and "
                f"sparsity={self.sparsity} is never reached; take more steps"
            )

    def _check_kinds(self) -> None:
        kinds = ",".join(self.of)
        if len(set(self.of)) < len(self.of):
            raise OptionError(f"of={kinds} names one kind twice")
        if not self.groups and not _SINGLE.issuperset(self.of):
            raise OptionError(
                f"of={kinds} mixes single weights with groups; train them one after the other"
            )
        if self.score == "wanda" and self.of != ("weights",):
            raise OptionError(f"score=wanda is for weights; of={kinds} moves by magnitude")

    def _check_amount(self) -> None:
        if self.sparsity is None:
            if self.of != ("weights",) or self.schedule != "constant":
                raise OptionError(
                    "a pattern is for weights, and the same from first to last; give masks=every a sparsity"
                )
        elif self.pattern is not None:
            raise OptionError(
                "choose either a sparsity, as in sparsity=0.5, or a pattern, as in 2:4"
            )
        elif not 0 <= self.sparsity < 1:
            raise OptionError(f"sparsity {self.sparsity} is not in [0, 1)")
