"""What a token of a program costs: parameters, arithmetic, and the bytes that a step touches."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sparsify.describe.count import count_parameters
from sparsify.describe.mixture import touched_experts
from sparsify.errors import OptionError
from sparsify.ir.facts.experts import expert_sets, read_tensors, row_tables
from sparsify.ir.facts.multiply_adds import work
from sparsify.ir.program import Program
from sparsify.ir.views.packed import packed_entries

MEANING = (
    "Bytes touched are of weights, a step reading each tensor once; which experts a step reaches is the mean "
    "under uniform routing. Multiply-adds of a forward and of training are never added up.",
    "Bytes and multiply-adds are two costs, and neither is a time: no speed follows from this table. "
    "`sparsify-fx bench` measures one.",
)
STEPS = (1, 16, 256, 2048)  # tokens of the steps that tables show


@dataclass(frozen=True)
class Experts:
    """The experts of one router: `size` of them, `chosen` a token; `parameters` and `bytes` of all."""

    size: int
    chosen: int
    parameters: int
    bytes: int

    def touched(self, tokens: int) -> float:
        """Experts that a step of N tokens reaches under uniform routing: `E (1 - (1 - K / E)^N)`."""
        return touched_experts(self.size, self.chosen, tokens)


@dataclass(frozen=True)
class Rows:
    """A table that ids pick rows of: `size` rows, `bytes` of all together."""

    size: int
    bytes: int


@dataclass(frozen=True)
class Step:
    """A step of `tokens`: experts of a set that it reaches (the mean over sets, 0 without), bytes it reads.

    `share` is the bytes over those of everything that the program reads; `multiply_adds` are the FORWARD's,
    with the keys a token as they are in the cost that the step is of.
    """

    tokens: int
    experts: float
    bytes: float
    share: float
    multiply_adds: float


@dataclass(frozen=True)
class Cost:
    """What a program costs a token.

    `parameters` counts every one once, a packed weight as the dense one it stands for. `multiply_adds` and
    `attention`, a part of them, are of one FORWARD at `[batch, length]`, as `sparsify.ir.facts.multiply_adds`
    counts. `whole_bytes` is what every step reads: all tensors of the graph but those of `experts`, a set
    a router, and of `tables`.
    """

    parameters: int
    multiply_adds: int
    attention: int
    batch: int
    length: int
    whole_bytes: int
    experts: tuple[Experts, ...] = ()
    tables: tuple[Rows, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the forward; of inputs without a length, inputs."""
        return self.batch * max(1, self.length)

    @property
    def active(self) -> int:
        """Parameters without the experts that a token is not sent to: `P - sum P_set (1 - K / E)`."""
        idle = (e.parameters * (e.size - e.chosen) // e.size for e in self.experts)
        return self.parameters - sum(idle)

    @property
    def forward(self) -> float:
        """Multiply-adds a token of a FORWARD, attention among them."""
        return self.multiply_adds / self.tokens

    def training(self, *, recomputing: bool = False) -> float:
        """Multiply-adds a token of TRAINING: 3 times the forward, 4 where activations are computed again.

        Gradients of inputs and of weights cost a forward each; with frozen weights it is less.
        """
        return (4 if recomputing else 3) * self.forward

    @property
    def bytes(self) -> int:
        """Bytes of all that the graph reads."""
        return (
            self.whole_bytes
            + sum(e.bytes for e in self.experts)
            + sum(t.bytes for t in self.tables)
        )

    def touched(self, tokens: int) -> float:
        """Bytes of weights that a step of N tokens reads, in expectation under uniform routing.

        `whole + sum_sets (bytes / E) E (1 - (1 - K / E)^N) + sum_tables (bytes / rows) min(N, rows)`; packed
        weights by their packed bytes, activations and caches not counted. OptionError for N below 1.
        """
        if tokens < 1:
            raise OptionError(f"a step has at least 1 token, not {tokens}")
        sent = sum(e.bytes * e.touched(tokens) / e.size for e in self.experts)
        looked_up = sum(t.bytes * min(tokens, t.size) / t.size for t in self.tables)
        return self.whole_bytes + sent + looked_up

    def steps(self, tokens: tuple[int, ...] = STEPS) -> list[Step]:
        """A row for each number of tokens."""
        return [self._step(n) for n in tokens]

    def _step(self, tokens: int) -> Step:
        reached = sum(e.touched(tokens) for e in self.experts)
        mean = reached / len(self.experts) if self.experts else 0.0
        read = self.touched(tokens)
        share = read / self.bytes if self.bytes else 0.0
        return Step(tokens, mean, read, share, tokens * self.forward)

    @classmethod
    def from_json(cls, about: Mapping[str, Any]) -> "Cost":
        """The cost that `dataclasses.asdict` has made JSON of; TypeError, KeyError or ValueError if not."""
        experts = tuple(Experts(**row) for row in about["experts"])
        tables = tuple(Rows(**row) for row in about["tables"])
        found = cls(**{**about, "experts": experts, "tables": tables})
        plain = {**about, "experts": 0, "tables": 0}
        parts: list[Experts | Rows] = [*experts, *tables]
        figures = [*plain.values(), *(value for part in parts for value in vars(part).values())]
        if any(type(value) is not int or value < 0 for value in figures):
            raise ValueError("a cost that is no count")
        if found.batch < 1 or any(part.size < 1 for part in parts):
            raise ValueError("a cost of nothing")
        if any(not 1 <= part.chosen <= part.size for part in experts):
            raise ValueError("experts that cannot be chosen")
        return found


def cost(program: Program, batch: int = 1, length: int = 128) -> Cost:
    """What a program costs, its multiply-adds counted in one forward at `[batch, length]`.

    Experts and how many a token is sent to are read off the graph: the axis that a top-k chooses from and
    that the matrices of grouped products are stored along. Raises OptionError for sizes below 1.
    """
    if batch < 1 or length < 1:
        raise OptionError(
            f"a cost is counted at batch and length of at least 1, not {batch}, {length}"
        )
    varying = {name for dims in program.dynamic.values() for name in dims.values()} - {"batch"}
    done = work(program, batch, length)
    sets, tables = expert_sets(program), row_tables(program)
    apart = {path for part in sets for path in part.tensors}
    apart |= {path for table in tables for path in table.tensors}
    return Cost(
        parameters=count_parameters(program),
        multiply_adds=done.total,
        attention=done.attention,
        batch=batch,
        length=length if varying else 0,
        whole_bytes=_bytes(program, (p for p in read_tensors(program) if p not in apart)),
        experts=tuple(
            Experts(
                size=part.size,
                chosen=part.chosen,
                parameters=_parameters(program, part.tensors),
                bytes=_bytes(program, part.tensors),
            )
            for part in sets
        ),
        tables=tuple(Rows(part.rows, _bytes(program, part.tensors)) for part in tables),
    )


def summary(cost: Cost) -> list[tuple[str, str]]:
    """The figures of a token in words: parameters, experts, arithmetic of forward and training apart."""
    kinds = Counter((e.size, e.chosen) for e in cost.experts)
    fed = f"[{cost.batch}, {cost.length}]" if cost.length else f"{cost.batch} inputs"
    return [
        ("parameters", f"{cost.parameters:,}"),
        ("active parameters", f"{cost.active:,}"),
        *(
            ("experts a token, of all", f"{k} of {size}, by {n} router{'s' * (n > 1)}")
            for (size, k), n in kinds.items()
        ),
        (f"forward multiply-adds, fed {fed}", f"{cost.forward:,.0f}"),
        ("of them attention, hidden keys counted", f"{cost.attention / cost.tokens:,.0f}"),
        ("training multiply-adds, 3 times the forward", f"{cost.training():,.0f}"),
        ("the same, activations computed twice", f"{cost.training(recomputing=True):,.0f}"),
    ]


def _bytes(program: Program, paths: Iterable[str]) -> int:
    return sum(program.tensor(path).nbytes for path in paths)


def _parameters(program: Program, paths: Iterable[str]) -> int:
    packed, counted = packed_entries(program), 0
    for path in paths:
        value = program.tensor(path)
        own = value.numel() if isinstance(value, torch.nn.Parameter) else 0
        counted += packed.get(path, own)
    return counted
