"""What an export holds, as figures: its sizes, and what is zero, removed or packed in every matrix."""

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from sparsify.describe.cost import Cost
from sparsify.disk.files import read_json, write_json
from sparsify.errors import DataError

FILE, VERSION = "sparsify-facts.json", 1


@dataclass(frozen=True)
class Weight:
    """A matrix of linear maps, `[out, in]`, or `[experts, out, in]` for those of experts.

    `was` is its shape when the model was traced, empty for one that a pass has added; `shape` is empty
    for one that is gone. `zeros` counts the zeros the graph multiplies by; `pattern` is the N:M they
    have, empty for none. `values` is what a value is stored as (of a rounded weight, what it can
    be stored as), `bytes` what all of it takes.
    """

    path: str
    shape: tuple[int, ...]
    was: tuple[int, ...]
    zeros: int
    pattern: str
    packed: bool
    values: str
    bytes: int


@dataclass(frozen=True)
class Share:
    """Entries of some matrices: when the model was traced, what is left of them, zeros among these."""

    was: int
    left: int
    zeros: int

    @classmethod
    def of(cls, weights: Iterable[Weight]) -> "Share":
        """The sums over some matrices; what a pass has added was never there before."""
        weights = list(weights)
        return cls(
            sum(math.prod(weight.was) for weight in weights if weight.was),
            sum(math.prod(weight.shape) for weight in weights if weight.shape),
            sum(weight.zeros for weight in weights),
        )

    @property
    def zero(self) -> float:
        """Zeros over what is left, 0 when nothing is."""
        return self.zeros / self.left if self.left else 0.0

    @property
    def removed(self) -> float:
        """What was taken out over what there was, at least 0."""
        return max(0.0, 1 - self.left / self.was) if self.was else 0.0

    @property
    def gone(self) -> float:
        """Zeros and what was taken out, over what there was: `1 - (1 - zero) (1 - removed)`."""
        return 1 - (1 - self.zero) * (1 - self.removed)


@dataclass(frozen=True)
class Facts:
    """A program in figures.

    `model` is its class, `task` what it is for, as the hub spells it, empty when unknown. `parameters`
    counts every one once, a packed weight as the dense one it stands for; `zeros` those that are zero,
    `were` the parameters when the model was traced, 0 when not known. `multiply_adds` is one forward of
    one sequence of `length` tokens (0 for inputs without a length), zeros of dense weights counted.
    `cost` is there for programs with experts.
    """

    model: str
    task: str
    pipeline: tuple[str, ...]
    parameters: int
    were: int
    zeros: int
    multiply_adds: int
    length: int
    weights: tuple[Weight, ...]
    cost: Cost | None = None


def kind(path: str) -> str:
    """What a weight is called in every layer alike: its path with `*` for each number."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", path)


def write_facts(facts: Facts, folder: Path) -> None:
    """Write the figures beside a model."""
    write_json(folder / FILE, {"format": "sparsify-facts", "version": VERSION, **asdict(facts)})


def read_facts(folder: Path) -> Facts | None:
    """The figures beside a model, None when it has none; DataError when they are damaged."""
    path = folder / FILE
    if not path.is_file():
        return None
    about = read_json(path)
    try:
        if (about.pop("format"), about.pop("version")) != ("sparsify-facts", VERSION):
            raise ValueError("another format or version")
        weights = tuple(
            Weight(**{**row, "shape": tuple(row["shape"]), "was": tuple(row["was"])})
            for row in about.pop("weights")
        )
        cost = about.pop("cost", None)
        return Facts(
            **{**about, "pipeline": tuple(about["pipeline"]), "weights": weights},
            cost=Cost.from_json(cost) if cost else None,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"'{path}' is damaged or not ours: {error}") from error
