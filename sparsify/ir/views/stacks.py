"""Matrices of experts that are stored together: the tokens they multiply, and what is no such matrix."""

from typing import Any

import torch
from torch import fx

from sparsify.ir.ops.grouped import GROUPED
from sparsify.ir.program import Program
from sparsify.ir.views.linear import Linear, product_at, products

aten = torch.ops.aten
_PRODUCTS = {aten.bmm.default, aten.baddbmm.default, aten.matmul.default, aten.einsum.default}
_PICKS = {aten.index.Tensor, aten.index_select.default}
_ROW_BYTES = 16
_FAR = 8  # nodes between a product and the choice of its rows: masks, probes and rounding


def tokens_of(program: Program, view: Linear) -> fx.Node | None:
    """The numbers of the tokens `[rows]` whose rows experts multiply; None where the graph does not say.

    Products whose groups end at the same rows multiply rows of the same tokens, and one of them reads what
    was picked by these numbers.
    """
    if view.ends is None:
        return None
    for other in (product_at(program, user) for user in view.ends.users):
        if other is None:
            continue
        node = other.x
        for _ in range(_FAR):
            numbers = _picked_by(node)
            if numbers is not None:
                return numbers
            first = node.args[0] if node.args else None
            if not isinstance(first, fx.Node):
                break
            node = first
    return None


def row_multiple(program: Program, view: Linear) -> int:
    """What the inputs of a product must be a multiple of; rows of torch's grouped one must begin evenly."""
    if not str(view.node.target).startswith("aten._grouped_mm"):
        return 1
    return _ROW_BYTES // program.tensor(view.weight).element_size()


def _picked_by(node: fx.Node) -> fx.Node | None:
    """The numbers by which rows `[tokens, features]` are picked, if a node does so."""
    if node.target not in _PICKS:
        return None
    numbers: Any = node.args[1] if node.target is aten.index.Tensor else node.args[1:]
    if node.target is aten.index_select.default:
        dim, picked = numbers
        return picked if dim == 0 else None
    return numbers[0] if len(numbers) == 1 else None


def stacks(program: Program, *, experts: bool = False) -> dict[str, int]:
    """The parameters of more than two dimensions that a product reads, and how many entries each has.

    Those that `products` finds are among them only for a pass that leaves matrices of `experts` out.
    """
    stacked = {view.weight for view in products(program) if view.stacked}
    found = {path: program.tensor(path).numel() for path in stacked if experts}
    for node in program.graph.find_nodes(op="get_attr"):
        path = str(node.target)
        value = program.tensor(path)
        many = isinstance(value, torch.nn.Parameter) and value.dim() > 2 and path not in stacked
        if many and _multiplies(node):
            found[path] = value.numel()
    return found


def left_whole(program: Program, *, experts: bool = False) -> list[str]:
    """A note on the `stacks` that a pass over linears leaves as they are; nothing where there are none."""
    found = stacks(program, experts=experts)
    if not found:
        return []
    whole = sum(value.numel() for value in program.module.parameters())
    return [
        f"{len(found)} stacks of weights, as of experts, are no linears and stay as they are: "
        f"{sum(found.values()):,} of {whole:,} parameters"
    ]


def _multiplies(node: fx.Node) -> bool:
    """Whether a product reads a tensor, whatever moves its entries before."""
    for user in node.users:
        target: Any = user.target
        if target in _PRODUCTS or str(target) in GROUPED:
            return True
        if len(user.all_input_nodes) == 1 and _multiplies(user):
            return True
    return False
