"""The kind: what a mask may stand for, and everything passes do with such masks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsify.errors import OptionError
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear
from sparsify.ir.views.targets import targeted
from sparsify.select.groups import Amount
from sparsify.select.importance import Criterion
from sparsify.select.weights import Target


@dataclass(frozen=True)
class Choice:
    """How to choose: by which score, and how much stays.

    The rest is for single weights: `share` is None where each has its own in the plan, `damping` is that
    of Gram matrices, `scales` says how the scales of quantizers are chosen on the way; `start` is told how
    many linears there are, `advance` each that is done.
    """

    by: Criterion
    amount: Amount
    share: Target | None = None
    damping: float = 0.01
    scales: str | None = None
    start: Callable[[int], None] = lambda count: None
    advance: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Units:
    """What is ranked together: `size` units, each `width` entries of a mask (the query heads of a KV group).

    `index` says of each entry of a mask which unit it belongs to, by the path of the mask; empty where none
    stands. `key` is a tensor that the units live in, to tell people.
    """

    key: str
    size: int
    width: int
    index: Mapping[str, Tensor]


class Kind(ABC):
    """A kind of thing that may go: how it is found, masked, chosen and removed.

    `scores` are those it can be chosen by; `of_statistics` need what probes have seen, `of_data` run the
    model. `family` is shared by kinds that are chosen together; those that are `late` come after the others.
    Methods are given the linears that were targeted, `views`.
    """

    name: str
    family: str
    scores: tuple[str, ...]
    of_statistics: frozenset[str] = frozenset()
    of_data: frozenset[str] = frozenset()
    late: bool = False
    experts: bool = True  # whether the matrices of experts are targets, too

    @property
    def feature(self) -> str:
        """The feature that its masks are."""
        return f"mask.{self.name}"

    def targeted(
        self, program: Program, targets: Sequence[str], ignore: Sequence[str]
    ) -> list[Linear]:
        """The linears that globs select for this kind; OptionError when one of them matches nothing."""
        return targeted(program, targets, ignore, experts=self.experts)

    def masked_weights(self, views: Sequence[Linear]) -> frozenset[str] | None:
        """The weights that get a mask of their own; None for a kind that has no masks of weights."""
        return None

    def refuse_score(self, score: str) -> None:
        """Raise OptionError for a score that says nothing of this kind."""
        if score not in self.scores:
            raise OptionError(
                f"score={score} is not for {self.name}; choose {' or '.join(self.scores[:2])}"
            )

    @abstractmethod
    def check(self, program: Program, views: Sequence[Linear]) -> None:
        """Refuse, before anything is changed, targets that can get no mask of this kind; OptionError."""

    @abstractmethod
    def add(self, program: Program, views: Sequence[Linear]) -> int:
        """Put masks in that keep everything; returns how many."""

    @abstractmethod
    def choose(
        self, program: Program, names: Sequence[str], views: Sequence[Linear], choice: Choice
    ) -> int:
        """Set the masks of the kinds `names`, all of this family; returns how many.

        Raises OptionError where no target has such a mask, or nothing would go.
        """

    def most(self, program: Program) -> int:
        """How many there are at one place at most; the bound of a target shape."""
        return 0

    def units(self, program: Program) -> list[Units]:
        """The units of every axis, or of all layers at once; OptionError for a kind that is not learnt."""
        raise OptionError(f"masks of {self.name} are not learnt; choose-masks chooses them")

    def fold(self, program: Program) -> int:
        """Make what masks leave out zeros of the weights, and drop the masks; returns how many."""
        raise OptionError(
            f"masks of {self.name} are not folded; prune-{self.name} removes what they leave out"
        )

    def remove(self, program: Program) -> int:
        """Cut what masks leave out of every tensor, drop the masks and write the plan; returns how many."""
        raise OptionError(f"{self.name} cannot be removed one by one; fold-masks makes them zeros")
