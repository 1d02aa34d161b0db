"""How much is asked to stay of which kinds: options held against each other, and made into amounts."""

from dataclasses import dataclass
from typing import Literal

from sparsify.errors import OptionError
from sparsify.ir.program import Program
from sparsify.select.groups import Amount, Rule
from sparsify.select.importance import OF_DATA, Normalise
from sparsify.select.kinds.catalogue import KINDS, kinds_of
from sparsify.select.target_shape import Shape
from sparsify.select.weights import Target


@dataclass(frozen=True)
class Asked:
    """The options of `choose-masks` that say how much stays; they are explained there."""

    of: tuple[str, ...]
    score: str
    sparsity: float | None
    pattern: str | None
    to: Shape | None
    scope: str
    normalise: Literal["auto"] | Normalise
    rule: Rule
    multiple: int

    @property
    def weights(self) -> bool:
        """Whether single weights are chosen."""
        return self.of == ("weights",)

    @property
    def planned(self) -> bool:
        """Whether each weight has its share in the plan."""
        return self.weights and self.sparsity is None and self.pattern is None

    def share(self) -> Target | None:
        """How many single weights stay; None by plan and for groups. OptionError as of `Target.of`."""
        if self.planned or not self.weights:
            return None
        return Target.of(self.sparsity, self.pattern)

    def check(self, program: Program) -> None:
        """Raise OptionError for options that do not fit each other, the kinds or the program."""
        if self.weights:
            self._check_weights()
        else:
            self._check_groups(program)

    def amount(self) -> Amount:
        """How much stays of each kind, and in which ranking."""
        several = len(self.of) > 1
        return Amount(
            sparsity=self.sparsity or 0.0,
            sizes=self.to.sizes() if self.to is not None else {},
            scope=self.scope,
            rule=self.rule,
            multiple=self.multiple,
            rounded=frozenset({"channels"} if several else self.of),
            per_parameter=several and self.normalised() == "none",
        )

    def normalised(self) -> Normalise:
        """How layers are made comparable; `auto` leaves scores that estimate the loss as they are."""
        if self.normalise != "auto":
            return self.normalise
        comparable = self.score in OF_DATA or (len(self.of) == 1 and self.score != "fluctuation")
        return "none" if self.scope != "global" or comparable else "standard"

    def _check_weights(self) -> None:
        KINDS["weights"].refuse_score(self.score)
        if self.to is not None or self.normalise != "auto":
            raise OptionError("to and normalise are for channels and heads, not for weights")
        self.share()
        if self.planned and (self.scope == "global" or self.score == "taylor"):
            raise OptionError(
                "a ranking over all layers has no place for their shares; give a sparsity"
            )

    def _check_groups(self, program: Program) -> None:
        kinds = ",".join(self.of)
        if "weights" in self.of:
            raise OptionError(f"of={kinds} mixes weights with groups; choose them in two passes")
        if self.pattern is not None or self.score == "sparsegpt":
            raise OptionError(f"a pattern or score=sparsegpt is for weights, not for {kinds}")
        for kind in kinds_of(self.of):
            kind.refuse_score(self.score)
        if self.scope != "global" and self.normalise != "auto":
            raise OptionError("normalise is for scope=global; elsewhere layers are not compared")
        if self.to is None:
            Target.of(self.sparsity, None)
        else:
            self._check_shape(program, self.to)

    def _check_shape(self, program: Program, to: Shape) -> None:
        kinds, sizes = ",".join(self.of), to.sizes()
        if self.sparsity is not None or self.scope == "global" or self.multiple != 1:
            raise OptionError(
                "to says every size, so that sparsity, scope and multiple have no place"
            )
        if sizes.keys() != set(self.of):
            raise OptionError(f"of={kinds} and to={to} must name the same kinds")
        for kind, size in sizes.items():
            largest = KINDS[kind].most(program)
            if not 0 < size <= largest:
                raise OptionError(
                    f"{kind}={size} cannot be kept of the {largest} {kind} that the program has"
                )
