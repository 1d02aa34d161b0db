"""Options of training on domains (dynamic batch loading): weights that stay, or follow held-out losses.

    every N steps     D_i = l_i - r_i          l: held-out loss of domain i now, r: its reference loss
    rule=paper        w_i <- w_i exp(max(D_i, 0)) / sum_j w_j exp(max(D_j, 0))
    rule=code         w_i <- (1 - 1e-4) w_i exp(D_i) / sum_j w_j exp(D_j) + 1e-4 / domains

Source: Sheared LLaMA (Xia et al., 2310.06694), section 2.2 and algorithm 1, and the code that came with it:
the two differ for domains that are below their reference already.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from sparsify.data.domains import DomainData
from sparsify.data.sequences import Data
from sparsify.errors import OptionError, nearest
from sparsify.ir.program import Program
from sparsify.text.options import Options
from sparsify.train.losses import check_labels

# The share of the code's rule that is spread evenly, so that no domain dies out.
_EVEN = 1e-4
# The word for references that are measured.
DENSE = "dense"


@dataclass(frozen=True)
class Constant(Options):
    """Weights stay; every `every` steps the loss of `samples` held-out sequences a domain is noted."""

    name: ClassVar[str] = "constant"
    every: int = 50
    samples: int = 64

    def references(self, names: Sequence[str]) -> dict[str, float]:
        """None: nothing is compared."""
        return {}

    def check(self, names: Sequence[str], steps: int) -> None:
        """Anything goes."""

    @property
    def measures_dense(self) -> bool:
        """Whether a loss of the dense twin is asked for."""
        return False

    def update(self, weights: Sequence[float], excess: Sequence[float]) -> list[float]:
        """The weights as they were."""
        return list(weights)


CONSTANT = Constant()


@dataclass(frozen=True)
class Dynamic(Options):
    """Weights follow the held-out losses, by the rule of the paper or that of its code.

    `reference` gives the loss that each domain should reach, `NAME:LOSS`; the word `dense` stands for all
    others and takes the loss of the dense twin. That is ours: the paper estimates the losses that a model of
    the target size would have.
    """

    name: ClassVar[str] = "dynamic"
    rule: Literal["paper", "code"] = "paper"
    every: int = 50
    samples: int = 64
    reference: tuple[str, ...] = (DENSE,)

    def references(self, names: Sequence[str]) -> dict[str, float]:
        """The losses that are given, by domain; OptionError for what is none, and for one that is missing."""
        found: dict[str, float] = {}
        for word in self.reference:
            name, colon, number = word.rpartition(":")
            if word == DENSE:
                continue
            if not colon or not _is_loss(number):
                raise OptionError(
                    f"reference={word} is not NAME:LOSS with a loss of at least 0, as in web:1.87, "
                    f"nor '{DENSE}'"
                )
            if name not in names:
                raise OptionError(
                    f"reference={word} is for '{name}', which is no domain of the data{nearest(name, names)}"
                )
            if name in found:
                raise OptionError(f"reference gives '{name}' twice")
            found[name] = float(number)
        missing = [name for name in names if name not in found]
        if missing and not self.measures_dense:
            raise OptionError(
                f"reference has no loss for '{missing[0]}'; give one, or '{DENSE}' to measure that of the "
                "dense twin"
            )
        return found

    def check(self, names: Sequence[str], steps: int) -> None:
        """References must be of these domains, and weights must have an occasion to change; OptionError."""
        if len(names) < 2:
            raise OptionError(
                f"domains=dynamic weighs domains against each other, and the data has '{names[0]}' alone"
            )
        if self.every >= steps:
            raise OptionError(f"every={self.every} is never due in {steps} steps; lower it")
        self.references(names)

    @property
    def measures_dense(self) -> bool:
        """Whether a loss of the dense twin is asked for."""
        return DENSE in self.reference

    def update(self, weights: Sequence[float], excess: Sequence[float]) -> list[float]:
        """The new weights, of sum 1, from the old ones and what each loss is above its reference."""
        rule = paper_rule if self.rule == "paper" else code_rule
        return rule(weights, excess)


def paper_rule(weights: Sequence[float], excess: Sequence[float]) -> list[float]:
    """`w_i exp(max(D_i, 0))`, over their sum: domains below their reference only lose what others gain."""
    return _scaled(weights, [max(each, 0.0) for each in excess])


def code_rule(weights: Sequence[float], excess: Sequence[float]) -> list[float]:
    """`w_i exp(D_i)`, over their sum, mixed with 1e-4 of equal weights."""
    even = _EVEN / len(weights)
    return [(1 - _EVEN) * weight + even for weight in _scaled(weights, excess)]


def _scaled(weights: Sequence[float], exponents: Sequence[float]) -> list[float]:
    top = max(exponents)  # exp of a large loss is beyond all numbers
    found = [w * math.exp(e - top) for w, e in zip(weights, exponents, strict=True)]
    whole = math.fsum(found)
    return [each / whole for each in found]


def _is_loss(text: str) -> bool:
    try:
        return 0 <= float(text) < math.inf
    except ValueError:
        return False


def check_domains(how: Constant | Dynamic, program: Program, data: Data, steps: int) -> None:
    """Refuse, before anything runs, options without domains, of others, or without losses; OptionError."""
    if not isinstance(data, DomainData):
        if how != CONSTANT:
            raise OptionError(
                f"domains={how} needs data with domains; name them, as in --data web=a.txt,code=b.txt"
            )
        return
    how.check(data.names, steps)
    why = unmeasured(program, data)
    if why and isinstance(how, Dynamic):
        raise OptionError(f"domains={how} goes by losses that cannot be measured: {why}")


def unmeasured(program: Program, data: Data) -> str:
    """Why no held-out loss of a domain can be measured; empty where it can."""
    if not isinstance(data, DomainData):
        return "the data has no domains"
    held = data.domains[0].held
    if held is None:
        return "the data holds out nothing"
    if not {"labels", "start_positions"} & held.batch([0]).keys():
        return "the data has no labels"
    try:
        check_labels(program, data, "take a model that has")
    except OptionError as error:
        return str(error)
    return ""
