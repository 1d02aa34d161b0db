"""What a pass and an exporter are, and what they may move."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

import torch

from sparsify.data.sequences import Data
from sparsify.ir.device import device_of
from sparsify.ir.program import Program
from sparsify.ir.run.pieces import PieceReader
from sparsify.select.target_shape import Heads
from sparsify.text.options import Options
from sparsify.train.plan import Step


@dataclass(frozen=True)
class Moves:
    """What a pass may move: the graph (outputs stay) or the function (text stays), law 1.

    With `graph`, outputs on the sample inputs may differ by `tolerance * max |output|`; 0 is bitwise.
    """

    graph: bool
    tolerance: float = 0.0

    def allowed(self, dtype: torch.dtype) -> float:
        """The tolerance for outputs of a dtype: stated for float32, scaled by the machine epsilon.

        Of numbers that differ at all it is at least two of their steps.
        """
        eps = torch.finfo(dtype).eps
        ratio = eps / torch.finfo(torch.float32).eps
        scaled = float(self.tolerance * max(1.0, ratio**0.5))
        return max(scaled, 2 * eps) if scaled else 0.0


NOTHING = Moves(graph=True)
ROUNDING = Moves(graph=True, tolerance=1e-5)
FUNCTION = Moves(graph=False)


@dataclass(frozen=True)
class Effect:
    """The features a pass needs, adds, sets and drops, and what it wants from the context.

    What it `adds` must be absent before; what it `sets` may be there already; what it `bars` must be
    gone. `wants` may hold `data` (sequences to calibrate or train on), `dense` (the dense twin) and
    `dense.bf16` (the dense twin, for which bfloat16 is enough).
    """

    needs: frozenset[str] = frozenset()
    adds: frozenset[str] = frozenset()
    sets: frozenset[str] = frozenset()
    drops: frozenset[str] = frozenset()
    wants: frozenset[str] = frozenset()
    bars: frozenset[str] = frozenset()

    def after(self, features: frozenset[str]) -> frozenset[str]:
        """The features of a program after the pass."""
        return (features | self.adds | self.sets) - self.drops


def effect(
    *,
    needs: Iterable[str] = (),
    adds: Iterable[str] = (),
    sets: Iterable[str] = (),
    drops: Iterable[str] = (),
    wants: Iterable[str] = (),
    bars: Iterable[str] = (),
) -> Effect:
    """An `Effect` from any iterables of words."""
    return Effect(*(frozenset(words) for words in (needs, adds, sets, drops, wants, bars)))


class Progress(Protocol):
    """Where a long pass tells how far it is."""

    def start(self, title: str, total: int | None) -> None:
        """A new bar with a number of steps; None where nobody knows how many."""

    def advance(self, **figures: float) -> None:
        """One step further, with figures to show (loss, tokens per second)."""

    def rename(self, title: str) -> None:
        """Another title for the bar that stands."""


class Silent:
    """A progress that shows nothing."""

    def start(self, title: str, total: int | None) -> None:
        """Ignore."""

    def advance(self, **figures: float) -> None:
        """Ignore."""

    def rename(self, title: str) -> None:
        """Ignore."""


@dataclass(frozen=True)
class Context:
    """What passes get besides the program.

    `scratch` is a folder where a long pass may keep its own resume state; None means it keeps none.
    `figures` collects rows of numbers that passes report (loss by step), by the name of the pass;
    `notes` sentences of the pass at work for its row of the report. Raises OptionError for a device that
    this machine has not.
    """

    data: Data | None = None
    seed: int = 0
    device: str = "cpu"
    dense: Program | None = None
    scratch: Path | None = None
    progress: Progress = field(default_factory=Silent)
    figures: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        device_of(self.device)

    def generator(self) -> torch.Generator:
        """A fresh CPU generator from the seed: each pass draws from its own."""
        return torch.Generator().manual_seed(self.seed)


class Pass(Options, ABC):
    """One rewriting or learning step; a frozen dataclass whose fields are its options in text."""

    name: ClassVar[str]
    moves: ClassVar[Moves]

    def limits(self) -> Moves:
        """`moves`, narrowed where an option says that less moves."""
        return self.moves

    @abstractmethod
    def effect(self) -> Effect:
        """What the pass needs, adds, drops and wants, given its options."""

    def check(self, program: Program) -> None:
        """Refuse, before anything runs, options that cannot fit this program; OptionError."""
        return None

    def featured_weights(self, program: Program) -> Mapping[str, frozenset[str]]:
        """Features that only some weights get, with the paths of these weights."""
        return {}

    def check_featured(self, program: Program, featured: Mapping[str, frozenset[str]]) -> None:
        """As `check`, where earlier passes will have given features to some weights alone; OptionError."""
        return None

    def heads_left(self, program: Program) -> Heads | None:
        """The heads that every attention is left with once they are removed, where options alone say it."""
        return None

    def step(self, program: Program, length: int) -> Step | None:
        """A step of its training on sequences of so many tokens, for a plan; None for one that has none."""
        return None

    def tokens_before(self) -> int:
        """How many places the pass puts before every sequence, which leave fewer positions to it."""
        return 0

    def check_data(self, program: Program, data: Data) -> None:
        """Refuse, before anything runs, data that cannot serve these options and the program; OptionError."""
        return None

    @abstractmethod
    def rewrite(self, program: Program, context: Context) -> int:
        """Edit the program in place and return how many places were changed."""


class Exporter(Options, ABC):
    """One output format; the engine writes to a temporary folder, reads back, compares, renames."""

    name: ClassVar[str]
    accepts: ClassVar[frozenset[str]] = frozenset()
    tolerance: ClassVar[float]
    library: ClassVar[str] = "sparsify-fx"  # that a model card names, as the hub spells it

    def holds(self) -> frozenset[str]:
        """The features that the format can hold: `accepts`, unless others decide."""
        return self.accepts

    def check(self, program: Program) -> None:
        """Refuse a program that the format cannot hold; ExportError says what to do instead."""
        return None

    def check_heads(self, program: Program, heads: Heads) -> None:
        """Refuse, before a long run, numbers of heads that the format cannot hold; ExportError."""
        return None

    def variant(self, program: Program) -> Program:
        """The program that is written: the one given, or one like it with other inputs and outputs."""
        return program

    def usage(self, program: Program) -> str:
        """Python for the model card: loads the folder it runs in, and runs the model; empty for none."""
        return ""

    @abstractmethod
    def write(self, program: Program, folder: Path) -> None:
        """Write every file of the format into an empty folder; the program stays as it is."""

    @abstractmethod
    def read_back(self, program: Program, folder: Path) -> "Reader":
        """A function from the program's inputs to its outputs, computed from the files alone."""

    def read_pieces(self, program: Program, folder: Path) -> PieceReader | None:
        """As `read_back`, in pieces cut at products that round their input; None where it cannot be cut."""
        return None


class Reader(Protocol):
    """Runs an exported model on the graph's inputs."""

    def __call__(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Outputs in the order of the program's outputs."""
