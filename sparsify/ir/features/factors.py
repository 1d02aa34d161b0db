"""Weights stored as factors: `linear(x, W, b)  ->  linear(linear(x, A), B, b)`, or with a core between."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsify.ir.features.beside import unpacked, unrounded
from sparsify.ir.features.feature import Feature
from sparsify.ir.features.packed_nm import replace_product
from sparsify.ir.graph import Writer
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import FACTORS, blocks, packed
from sparsify.ir.views.linear import Linear, linears, own_bias
from sparsify.ir.views.packed import block_weights, packed_linears

aten = torch.ops.aten


@dataclass(frozen=True)
class Factored:
    """What a linear has become: its `weight` is gone, `node` is the last product and adds `bias`."""

    weight: str
    node: fx.Node
    bias: fx.Node | None


def split_linear(program: Program, linear: Linear, chain: Mapping[str, Tensor]) -> None:
    """Let a linear multiply by factors one after the other, each `[out, in]`, the first by what enters.

    Factors that are there already are read as they are; linears that read one value share the product with
    a first factor of theirs. The dense weight goes with the next `sweep`. Raises OptionError for a product
    that the model scales (`addmm` with `alpha` or `beta`).
    """
    *inner, last = chain

    def make(writer: Writer, x: fx.Node, bias: fx.Node | None) -> fx.Node:
        for path in inner:
            x = _made(x, path) or writer.call(aten.linear.default, x, writer.read(path))
        own = [] if bias is None else [bias]
        return writer.call(aten.linear.default, x, writer.read(last), *own)

    for path, value in chain.items():
        if not program.has(path):
            program.put(path, value, trainable=True)
    replace_product(program, linear, len(chain[last]), make)
    program.plan.setdefault("factors", {})[linear.weight] = list(chain)


def factored(program: Program) -> list[Factored]:
    """Every linear that was split, in graph order, its factors packed by now or not."""
    chains = {tuple(chain): weight for weight, chain in program.plan.get("factors", {}).items()}
    sizes = {len(chain) for chain in chains}
    products = {node: (path, x, bias) for node, path, x, bias in _products(program)}
    found = []
    for node, (*_, bias) in products.items():
        chain: list[str] = []
        here: fx.Node | None = node
        while here in products and len(chain) < max(sizes, default=0):
            path, here, _ = products[here]
            chain.insert(0, path)
            if tuple(chain) in chains:
                found.append(Factored(chains[tuple(chain)], node, bias))
    return found


def carry_factors(made: Program, program: Program) -> None:
    """Split the same linears of another program by the same factors, which may be packed in the first."""
    chains = program.plan.get("factors", {})
    for view in [view for view in linears(made) if view.weight in chains]:
        stored = {path: unpacked(program, path) for path in chains[view.weight]}
        split_linear(made, view, {path: t for path, t in stored.items() if t is not None})


def _made(x: fx.Node, path: str) -> fx.Node | None:
    """The product of a value with a stored factor, where another linear has made it."""
    for user in x.users:
        if user.target is aten.linear.default and user.args[0] is x and len(user.args) == 2:
            weight = user.args[1]
            if isinstance(weight, fx.Node) and weight.op == "get_attr" and weight.target == path:
                return user
    return None


def _products(program: Program) -> Iterator[tuple[fx.Node, str, fx.Node, fx.Node | None]]:
    """Every product with a stored matrix: its node, the path of the matrix, what enters, its bias."""
    places = {node: place for place, node in enumerate(program.graph.nodes)}
    found: list[tuple[fx.Node, str, fx.Node, fx.Node | None]] = []
    for view in linears(program):
        found.append((view.node, view.weight, unrounded(view), own_bias(view)))
    for sparse in packed_linears(program):
        place = sparse.node.args[2]
        bias = place if isinstance(place, fx.Node) else None
        found.append((sparse.node, sparse.weight.removesuffix(packed("")), sparse.x, bias))
    for block in block_weights(program):
        if not block.is_table:
            path = block.codes.removesuffix(blocks("")[0])
            found.append((block.node, path, block.node.all_input_nodes[0], block.bias))
    yield from sorted(found, key=lambda item: places[item[0]])


FEATURES = (Feature(FACTORS, find=factored, carry=carry_factors),)
