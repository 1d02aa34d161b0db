"""A store behind the head: `mix_neighbours(logits, x, keys, values, share, temperature)`.

x is what enters the linear that makes the logits. Mixed probabilities go out as logits, by their logarithm.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsify.errors import OptionError
from sparsify.ir.features.beside import unrounded
from sparsify.ir.features.feature import Feature
from sparsify.ir.features.tail import before_tail
from sparsify.ir.graph import Writer, output_nodes, redirect, sweep
from sparsify.ir.ops.neighbours import mix_neighbours
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import neighbours as paths_of
from sparsify.ir.views.linear import Linear, linear_at


@dataclass(frozen=True)
class Neighbours:
    """The store behind a head: nodes of the logits and of what enters the head, and paths of its tensors.

    `keys [N, d]`, `values [N]` (classes) or `[N, C]` (probabilities), `share []`, `temperature []`.
    """

    node: fx.Node
    logits: fx.Node
    x: fx.Node
    keys: str
    values: str
    share: str
    temperature: str
    k: int
    cosine: bool


@dataclass(frozen=True)
class Place:
    """Where a store can stand: the linear that makes the logits, and the first output."""

    head: Linear
    logits: fx.Node

    @property
    def width(self) -> int:
        """The number of features of a key."""
        return int(self.x.meta["val"].shape[-1])

    @property
    def classes(self) -> int:
        """The number of logits."""
        return int(self.logits.meta["val"].shape[-1])

    @property
    def x(self) -> fx.Node:
        """What enters the head, before any rounding."""
        return unrounded(self.head)


def head_of(program: Program) -> Place:
    """Where a store can stand; OptionError where no linear makes the first output."""
    logits = output_nodes(program)[0]
    head = linear_at(program, before_tail(logits)[0])
    if head is None:
        raise OptionError(
            f"'{program.source.outputs[0]}' does not come from a linear as it is, so that there is no head "
            "to put a store behind; it must be logits of all tokens or of the sequence, and not packed yet"
        )
    return Place(head, logits)


def add_neighbours(
    program: Program,
    place: Place,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    k: int,
    cosine: bool,
) -> None:
    """Put a store behind the head: keys, values, share and temperature, as `Neighbours` has them."""
    writer = Writer(program, after=place.logits)
    named = zip(paths_of(place.head.weight), tensors, strict=True)
    held = [writer.buffer(path, value) for path, value in named]
    made = writer.call(mix_neighbours, place.logits, place.x, *held, k, cosine)
    redirect(place.logits, made, but=(made,))


def neighbours(program: Program) -> list[Neighbours]:
    """Every store of the program."""
    found = program.graph.find_nodes(op="call_function", target=mix_neighbours)
    return [_read(node) for node in found]


def _read(node: fx.Node) -> Neighbours:
    logits, x, *held, k, cosine = node.args
    assert isinstance(logits, fx.Node)
    assert isinstance(x, fx.Node)
    assert isinstance(k, int)
    keys, values, share, temperature = (str(n.target) for n in held if isinstance(n, fx.Node))
    return Neighbours(node, logits, x, keys, values, share, temperature, k, bool(cosine))


def drop_neighbours(program: Program, found: Neighbours) -> None:
    """Let the head's own logits go out."""
    redirect(found.node, found.logits)
    sweep(program)


def carry_neighbours(made: Program, program: Program) -> None:
    """Put the store of a program behind the head of another."""
    for item in neighbours(program):
        names = (item.keys, item.values, item.share, item.temperature)
        keys, values, share, temperature = (program.tensor(path) for path in names)
        add_neighbours(made, head_of(made), (keys, values, share, temperature), item.k, item.cosine)


def store_bytes(program: Program, found: Neighbours) -> int:
    """What keys and values take, in bytes."""
    return sum(program.tensor(path).nbytes for path in (found.keys, found.values))


@torch.no_grad()
def fill(
    program: Program,
    found: Neighbours,
    keys: Tensor,
    values: Tensor,
    share: float,
    temperature: float,
) -> None:
    """Write a store's tensors; keys are made as long as 1 where it compares directions."""
    if found.cosine:
        keys = torch.nn.functional.normalize(keys, dim=-1)
    program.tensor(found.keys).copy_(keys)
    program.tensor(found.values).copy_(values)
    program.tensor(found.share).fill_(share)
    program.tensor(found.temperature).fill_(temperature)


FEATURES = (Feature("neighbours", paths_of(""), neighbours, drop_neighbours, carry_neighbours),)
