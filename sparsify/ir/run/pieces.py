"""A program run in pieces: each product that rounds its input gets one that lies on the grid already.

    entering x  ->  R(x)  ->  leaving R(x) W^T + b

Rounding turns the last digit of a float into a whole step of the next layer, and so on to the end: outputs of
two right computations of one rounded program may be far apart. Given the same values on the grid, which no
last digit can move off it, every piece gives the same up to the rounding of float32, and a wrong
scale in one layer stands out from that. What runs the pieces may be another program, or a file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from sparsify.ir.mode import evaluating
from sparsify.ir.ops.grouped import rows_of_each
from sparsify.ir.ops.packed_experts import ENDS
from sparsify.ir.ops.rounding import quantize_activations
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import of_expert
from sparsify.ir.views.packed import block_weights, packed_linears
from sparsify.tensors.precision import relative_difference

# A use of a packed weight: its path, and which of its uses in graph order.
Place = tuple[str, int]


@dataclass(frozen=True)
class Pieces:
    """What a run in pieces gave: the outputs, and by place what entered and left each rounded product.

    `entering` as it was computed, before rounding, from what the products before it gave.
    """

    outputs: tuple[Tensor, ...]
    entering: Mapping[Place, Tensor]
    leaving: Mapping[Place, Tensor]


class PieceReader(Protocol):
    """Runs an exported model in pieces: on inputs by name, and on what each rounded product is given."""

    def __call__(self, inputs: Mapping[str, Tensor], given: Mapping[Place, Tensor]) -> Pieces:
        """The pieces; ExportError when the file has other products than those given."""


def places(found: Iterator[tuple[str, Any]]) -> dict[Place, Any]:
    """What uses weights, as pairs of path and user in graph order, by place."""
    uses: dict[str, int] = {}
    named: dict[Place, Any] = {}
    for path, user in found:
        named[path, uses.setdefault(path, 0)] = user
        uses[path] += 1
    return named


def run_in_pieces(
    program: Program, batch: Mapping[str, Tensor]
) -> tuple[Pieces, dict[Place, Tensor]]:
    """A program in pieces on a batch, and what each of its rounded products was given."""
    cut = _Cut(program)
    with evaluating(program.module), torch.no_grad():
        outputs = cut.run(*program.complete(batch).values())
    return Pieces(outputs, cut.entering, cut.leaving), cut.given


def strange_piece(own: Pieces, other: Pieces, tolerance: float) -> str:
    """The first piece that another run computes otherwise, in words; empty when there is none.

    Pieces may differ by `tolerance` of the largest value.
    """
    for place in own.entering:
        for what, mine, its in (
            ("input", own.entering, other.entering),
            ("output", own.leaving, other.leaving),
        ):
            moved = relative_difference(mine[place], its[place])
            if not moved <= tolerance:
                return (
                    f"given the same values before it, the {what} of the product with @{place[0]} differs "
                    f"by {moved:.2g} of the largest value, allowed is {tolerance:.2g}"
                )
    return ""


class _Cut(fx.Interpreter):
    """Runs a program, and gives each rounded product its input as rounded already."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.module)
        self._places = {node: (place, group) for place, (node, group) in _products(program).items()}
        self.entering: dict[Place, Tensor] = {}
        self.leaving: dict[Place, Tensor] = {}
        self.given: dict[Place, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Interpret a node; a rounded product on the grid."""
        if n not in self._places:
            return super().run_node(n)
        (path, use), group = self._places[n]
        args, _ = self.fetch_args_kwargs_from_env(n)
        x, *others = args
        given = quantize_activations(x, torch.ones((), dtype=torch.bool), group)
        y = self.call_function(n.target, (given, *others), {})
        for place, rows in _rows(n, path, use, args):
            self.entering[place], self.given[place] = x[rows], given[rows]
            self.leaving[place] = y[rows]
        return y


def _rows(
    node: fx.Node, path: str, use: int, args: Sequence[Any]
) -> Iterator[tuple[Place, slice | int]]:
    """The places of a product, and the rows of x that are theirs: every expert is one by itself."""
    if node.target not in ENDS:
        yield (path, use), slice(None)
        return
    for expert, rows in enumerate(rows_of_each(args[0], args[ENDS[node.target]])):
        yield (of_expert(path, expert), use), rows


def _products(program: Program) -> dict[Place, tuple[fx.Node, int]]:
    """Every product that rounds its input, with the group of its scales, by place."""
    found = {view.node: (view.weight, view.layout.group) for view in packed_linears(program)}
    blocks = [view for view in block_weights(program) if not view.is_table]
    found |= {view.node: (view.codes, view.form.group) for view in blocks}
    ordered = [node for node in program.graph.nodes if node in found and found[node][1]]
    return places((found[node][0], (node, found[node][1])) for node in ordered)
