"""Parts of `train`: distances to the dense twin, pulls on masked weights, the schedule of omission."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsify.errors import OptionError
from sparsify.tensors import decay
from sparsify.tensors.omission import ladder
from sparsify.text.options import Options
from sparsify.train import losses
from sparsify.train.schedules import Shape


@dataclass(frozen=True)
class Kl(Options):
    """`weight * T^2 KL(p_dense || p)` of the first output's softmax at temperature T, a token.

    With `stored`, a folder, the `top` largest logits of the dense twin are written there before the training,
    those of the sequences that it draws, and read from there; all others count as one more. Where they are
    there of all sequences of the data, no twin is made.
    """

    name: ClassVar[str] = "kl"
    per_token: ClassVar[bool] = True
    weight: float = 1.0
    temperature: float = 1.0
    stored: str | None = None
    top: int = 64

    def check(self) -> None:
        """The temperature and the number of logits must make sense; OptionError."""
        if self.temperature <= 0:
            raise OptionError(f"temperature={self.temperature} must be positive")
        if self.top < 1:
            raise OptionError(f"top={self.top} must be at least 1")

    def __call__(
        self, outputs: Sequence[Tensor], dense: Sequence[Tensor], mask: Tensor | None
    ) -> Tensor:
        """The distance, a scalar."""
        return losses.mean(self.each(outputs[0], dense[0]), mask)

    def each(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The distance of each token."""
        return self.weight * losses.kl(student, teacher, self.temperature)

    def each_of_top(self, student: Tensor, ids: Tensor, logs: Tensor, rest: Tensor) -> Tensor:
        """The distance of each token to stored logits."""
        return self.weight * losses.kl_of_top(student, ids, logs, rest, self.temperature)

    def size(self, dense: Sequence[Tensor], mask: Tensor | None) -> float:
        """The number of tokens."""
        return losses.total(torch.ones(dense[0].shape[:-1], device=dense[0].device), mask)


@dataclass(frozen=True)
class Squared(Options):
    """`weight * ||h - h_dense||^2 / ||h_dense||^2` of the first output's states; for encoders."""

    name: ClassVar[str] = "squared"
    per_token: ClassVar[bool] = False
    weight: float = 1.0

    def __call__(
        self, outputs: Sequence[Tensor], dense: Sequence[Tensor], mask: Tensor | None
    ) -> Tensor:
        """The distance, a scalar."""
        sizes = self._sizes(dense)
        return losses.mean(self.each(outputs[0], dense[0]), mask) / losses.mean(sizes, mask)

    def each(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The squared distance of each token."""
        return self.weight * losses.squared(student, teacher)

    def size(self, dense: Sequence[Tensor], mask: Tensor | None) -> float:
        """The sum of the squares of the dense states."""
        return losses.total(self._sizes(dense), mask)

    def _sizes(self, dense: Sequence[Tensor]) -> Tensor:
        return dense[0].float().square().sum(-1)


@dataclass(frozen=True)
class Lors(Options):
    """Omission `rate` for a fraction `hold` of the steps, then `rungs` equal steps down to dense (SAT).

    With `hold=1.0` the rate never falls. The learning rate goes by `shape`.
    """

    name: ClassVar[str] = "lors"
    rate: float = 0.5
    hold: float = 0.8
    rungs: int = 5
    shape: Shape = "cosine"

    def check(self) -> None:
        """The rate, the fraction and the rungs must make sense; OptionError."""
        if not 0 <= self.rate < 1:
            raise OptionError(f"lors{{rate={self.rate}}} must be at least 0 and less than 1")
        if not 0 <= self.hold <= 1:
            raise OptionError(f"lors{{hold={self.hold}}} is a fraction of the steps, from 0 to 1")
        if self.rungs < 1:
            raise OptionError(f"lors{{rungs={self.rungs}}} must be at least 1")

    def omission(self, progress: float) -> float:
        """The omission rate when a fraction of the steps is done."""
        return ladder(progress, self.rate, self.hold, self.rungs)


@dataclass(frozen=True)
class Pull(Options):
    """No pull on masked weights; the others change one of the two places where one can act."""

    name: ClassVar[str] = "free"

    def check(self) -> None:
        """Refuse options out of range; OptionError."""

    def strength(self, progress: float) -> float:
        """The strength of the pull when a fraction of the steps is done."""
        return 0.0

    def gradient(self, gradient: Tensor, weight: Tensor, mask: Tensor, progress: float) -> Tensor:
        """What enters the first moment."""
        return gradient

    def momentum(self, moment: Tensor, weight: Tensor, mask: Tensor, progress: float) -> Tensor:
        """What steps in place of the first moment."""
        return moment


@dataclass(frozen=True)
class SrSte(Pull):
    """`g + strength (1 - m) W`, the same from first to last (SR-STE)."""

    name: ClassVar[str] = "sr-ste"
    peak: float = 2e-4

    def strength(self, progress: float) -> float:
        """The peak, always."""
        return self.peak

    def gradient(self, gradient: Tensor, weight: Tensor, mask: Tensor, progress: float) -> Tensor:
        """The gradient with the pull."""
        return decay.pull(gradient, weight, mask, self.peak)


@dataclass(frozen=True)
class ArsSte(Pull):
    """`u + strength(t) (1 - m) W` after the momentum; rises linearly over `ramp` of the run (AST).

    What counts is the pull against the first moment u: the peak should be of the order of rms(u) /
    |W|. With `ramp=0` the strength is constant.
    """

    name: ClassVar[str] = "ars-ste"
    peak: float = 1e-4
    ramp: float = 0.25

    def check(self) -> None:
        """The ramp is a fraction of the run."""
        if not 0 <= self.ramp <= 1:
            raise OptionError(f"ramp={self.ramp} is a fraction of the steps, from 0 to 1")

    def strength(self, progress: float) -> float:
        """`peak min(1, progress / ramp)`."""
        return decay.ramp(progress, self.peak, self.ramp)

    def momentum(self, moment: Tensor, weight: Tensor, mask: Tensor, progress: float) -> Tensor:
        """The first moment with the pull."""
        return decay.pull(moment, weight, mask, self.strength(progress))


@dataclass(frozen=True)
class AdamS(Pull):
    """`(1 - a) u + a peak sign(W)` where masked, a the progress of the run; the forward stays dense (CAST).

    `reach`: how many times the mean |W| the pull must be able to move a weight, `sum lr a`, for the
    final prune to be free; 0 leaves the check out. With `proportional=false` the gradient keeps its
    say: `u + a peak sign(W)`, plain L1.
    """

    name: ClassVar[str] = "adams"
    peak: float = 1e-4
    reach: float = 4.0
    proportional: bool = True

    def strength(self, progress: float) -> float:
        """`peak a`."""
        return self.peak * progress

    def momentum(self, moment: Tensor, weight: Tensor, mask: Tensor, progress: float) -> Tensor:
        """The first moment, or the pull in its place."""
        if self.proportional:
            return decay.proportional(moment, weight, mask, self.peak, progress)
        return torch.where(mask, moment, moment + weight.sign() * self.strength(progress))
