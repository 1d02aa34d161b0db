"""Layers as allocations see them: the linears that share a sparsity or a rank, and their features."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsify import ranks
from sparsify.data.sequences import Data, batches
from sparsify.errors import DataError, SparsifyError
from sparsify.ir.axes.residual import Block, blocks
from sparsify.ir.axes.walk import analyse
from sparsify.ir.program import Program
from sparsify.ir.run.values import Values
from sparsify.ir.views.linear import Linear

# Features that a Gram matrix takes at a time, in float32.
_COLUMNS = 1 << 16


@dataclass(frozen=True)
class Layer:
    """A residual layer of the program: the linears in it, what enters it and what leaves it."""

    views: tuple[Linear, ...]
    entry: fx.Node
    end: fx.Node

    def size(self, program: Program) -> int:
        """The number of weights of its linears."""
        return sum(program.tensor(view.weight).numel() for view in self.views)


def layers_of(program: Program, views: Sequence[Linear]) -> list[Layer]:
    """The layers that hold some of these linears, in graph order; a linear in no layer is left out.

    Raises SparsifyError when none lies in a residual layer.
    """
    found: list[Block] = blocks(analyse(program), "layers")
    by_weight = {path: number for number, block in enumerate(found) for path in block.weights}
    inside: dict[int, dict[str, Linear]] = {}
    for view in views:
        if view.weight in by_weight:
            inside.setdefault(by_weight[view.weight], {}).setdefault(view.weight, view)
    if not inside:
        raise SparsifyError("no target lies in a residual layer, so that layers have no shares")
    return [
        Layer(tuple(inside[number].values()), found[number].x, found[number].y)
        for number in sorted(inside)
    ]


def feature_grams(
    program: Program, layers: Sequence[Layer], data: Data, indices: Sequence[int], batch: int
) -> list[Tensor]:
    """For each layer `K = F F^T [n, n]` of what enters it, F one row a sequence, all tokens in it.

    Raises DataError when sequences differ in length: their features could not be compared.
    """
    features: list[list[Tensor]] = [[] for _ in layers]
    watch = Values(program, [layer.entry for layer in layers])
    for part in batches(data, indices, batch):
        values = watch.of(part)
        for kept, layer in zip(features, layers, strict=True):
            kept.append(values[layer.entry].flatten(1))
    if len({piece.shape[1] for piece in features[0]}) > 1:
        raise DataError("sequences differ in length; features need text cut into equal blocks")
    return [_gram(torch.cat(pieces)) for pieces in features]


def _gram(rows: Tensor) -> Tensor:
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for start in range(0, rows.shape[1], _COLUMNS):
        wide = rows[:, start : start + _COLUMNS].float()
        gram += (wide @ wide.T).double()
    return gram


def layer_errors(
    program: Program, dense: Program, layers: Sequence[Layer], parts: Iterator[dict[str, Tensor]]
) -> Tensor:
    """How far the output of each layer is from the dense model's, channel by channel; `[layers]`.

        L_i = mean_c ||D_i[:, c] - P_i[:, c]||^2 / ||D_i[:, c]||^2

    Errors add up from layer to layer. Padded tokens count as others do. Source: LoSA (2502.14816),
    section 3.3, equation 6. Where `parts` are those of one rank, every rank gets the sums of all.
    """
    names = {node.name: node for node in dense.graph.nodes}
    ends = [layer.end for layer in layers]
    try:
        twins = [names[end.name] for end in ends]
    except KeyError as error:
        raise SparsifyError(
            f"the dense model has no value {error} to compare a layer with; "
            "start from a model of the same layers"
        ) from error
    here, there = Values(program, ends), Values(dense, twins)
    totals: dict[int, Tensor] = {}
    for part in parts:
        mine, theirs = here.of(part), there.of(part)
        for i, (end, twin) in enumerate(zip(ends, twins, strict=True)):
            target = theirs[twin].double().flatten(0, -2)
            lost = target - mine[end].double().flatten(0, -2)
            sums = torch.stack([lost.square().sum(0), target.square().sum(0)])
            totals[i] = totals[i] + sums if i in totals else sums
    totals = _summed(ranks.gathered(totals))
    tiny = torch.finfo(torch.float64).tiny
    return torch.stack([(lost / whole.clamp_min(tiny)).mean() for lost, whole in totals.values()])


def _summed(found: Sequence[dict[int, Tensor]]) -> dict[int, Tensor]:
    """Sums by layer, of which a rank without a batch has none."""
    layers = sorted({layer for sums in found for layer in sums})
    parts = {layer: [sums[layer] for sums in found if layer in sums] for layer in layers}
    return {layer: torch.stack(each).sum(0) for layer, each in parts.items()}
