"""Stacks: which matrices of a program are approximated together, as one tensor `[n, a, b]`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparsify.errors import OptionError
from sparsify.ir.axes.feed_forward import feed_forwards
from sparsify.ir.axes.projections import projections
from sparsify.ir.axes.walk import analyse
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear, out_in
from sparsify.tensors.precision import shape_of

Kind = Literal["ffn", "attention", "one"]
Scope = Literal["layer", "segment", "all"]


@dataclass(frozen=True)
class Slice:
    """A matrix of a stack: rows of the weight of a linear as `[out, in]`, or its transpose where `turned`."""

    view: Linear
    start: int = 0
    stop: int | None = None
    turned: bool = False

    def of(self, stored: Tensor) -> Tensor:
        """The matrix in a tensor laid out like the weight, as a view of it."""
        matrix = out_in(self.view, stored)[self.start : self.stop]
        return matrix.T if self.turned else matrix


@dataclass(frozen=True)
class Stack:
    """Matrices of one shape; `number` counts stacks from 0 in the order of the graph."""

    number: int
    slices: tuple[Slice, ...]

    @property
    def weights(self) -> list[str]:
        """The paths of the weights, each once."""
        return list(dict.fromkeys(item.view.weight for item in self.slices))

    def tensor(self, program: Program) -> Tensor:
        """The matrices `[n, a, b]`."""
        return torch.stack(
            [item.of(program.tensor(item.view.weight).detach()) for item in self.slices]
        )

    def changed(self, program: Program, slices: Tensor) -> dict[str, Tensor]:
        """The weights with other matrices `[n, a, b]` in them, in their own types and layouts, by path."""
        made = {path: program.tensor(path).detach().clone() for path in self.weights}
        for item, matrix in zip(self.slices, slices, strict=True):
            item.of(made[item.view.weight]).copy_(matrix)
        return made


def stacks(
    program: Program, kind: Kind, views: Sequence[Linear], layers: Sequence[int] = ()
) -> list[Stack]:
    """The stacks of a kind whose weights are among some linears, in graph order; those of some numbers.

    Of `ffn` what makes the channels of a feed-forward block (not its gate) and the transpose of what reads
    them; of `attention` the linears around one, fused ones cut into their parts; of `one` each linear alone.
    Numbers below 0 count from the end. Raises OptionError where there is none, for a number that no stack
    has, matrices of different shapes, and a weight that two stacks would share.
    """
    wanted = {view.weight for view in views}
    every = _OF[kind](program, views)
    chosen = [tuple(s for s in slices if s.view.weight in wanted) for slices in every]
    least = 1 if kind == "one" else 2
    whole = [slices for slices in chosen if len(slices) >= least]
    found = [Stack(number, slices) for number, slices in enumerate(whole)]
    if not found:
        raise OptionError(
            f"no two targets belong to a stack of stack={kind}; `sparsify-fx show MODEL --axes` lists the "
            "heads and channels of a program, and stack=one takes linears one by one"
        )
    picked = [found[number] for number in _numbers(layers, len(found))] if layers else found
    owners: dict[str, int] = {}
    for stack in picked:
        _check_shapes(program, stack.slices)
        for path in stack.weights:
            if owners.setdefault(path, stack.number) != stack.number:
                raise OptionError(f"two stacks hold @{path}; leave it out with ignore")
    return picked


def joined(program: Program, found: Sequence[Stack], scope: Scope, segment: int) -> list[Stack]:
    """Stacks put together: each by itself, `segment` that follow each other, or all.

    A stack made of several has the number of its first. Raises OptionError where their shapes differ.
    """
    size = {"layer": 1, "segment": segment, "all": len(found)}[scope]
    made = []
    for start in range(0, len(found), size):
        part = found[start : start + size]
        slices = tuple(item for stack in part for item in stack.slices)
        _check_shapes(program, slices)
        made.append(Stack(part[0].number, slices))
    return made


def _feed_forward(program: Program, views: Sequence[Linear]) -> list[tuple[Slice, ...]]:
    return [(Slice(b.up), Slice(b.last, turned=True)) for b in feed_forwards(program)]


def _attention(program: Program, views: Sequence[Linear]) -> list[tuple[Slice, ...]]:
    return [
        tuple(part for view in block for part in _parts(program, view))
        for block in projections(program)
    ]


def _alone(program: Program, views: Sequence[Linear]) -> list[tuple[Slice, ...]]:
    return [(Slice(view),) for view in {view.weight: view for view in views}.values()]


_OF: Mapping[Kind, Callable[[Program, Sequence[Linear]], list[tuple[Slice, ...]]]] = {
    "ffn": _feed_forward,
    "attention": _attention,
    "one": _alone,
}


def _parts(program: Program, view: Linear) -> list[Slice]:
    """The parts of a linear that makes several values side by side."""
    sizes = [part.size for part in analyse(program).axes[view.node][-1].addends()]
    stops = torch.tensor(sizes).cumsum(0).tolist()
    return [Slice(view, stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]


def _numbers(layers: Sequence[int], count: int) -> list[int]:
    for number in layers:
        if not -count <= number < count:
            raise OptionError(
                f"layers={number} is no stack: there are {count}, 0 to {count - 1}, or -1 for the last"
            )
    return sorted({number % count for number in layers})


def _check_shapes(program: Program, slices: Sequence[Slice]) -> None:
    first = slices[0]
    wanted = shape_of(first.of(program.tensor(first.view.weight)))
    for item in slices:
        shape = shape_of(item.of(program.tensor(item.view.weight)))
        if shape != wanted:
            raise OptionError(
                f"@{item.view.weight} {shape} does not fit on @{first.view.weight} {wanted}: a stack has "
                "matrices of one shape (keys and values of grouped heads are smaller, a linear that makes "
                "queries, keys and values head by head is larger); leave it out with ignore"
            )
