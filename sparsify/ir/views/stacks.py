"""Weights of several products in one tensor, as of experts: no linear, which most passes are about."""

from typing import Any

import torch
from torch import fx

from sparsify.ir.ops.grouped import GROUPED
from sparsify.ir.program import Program

aten = torch.ops.aten
_PRODUCTS = {aten.bmm.default, aten.baddbmm.default, aten.matmul.default, aten.einsum.default}


def stacks(program: Program) -> dict[str, int]:
    """The parameters of more than two dimensions that a product reads, and how many entries each has."""
    found = {}
    for node in program.graph.find_nodes(op="get_attr"):
        path = str(node.target)
        value = program.tensor(path)
        if isinstance(value, torch.nn.Parameter) and value.dim() > 2 and _multiplies(node):
            found[path] = value.numel()
    return found


def left_whole(program: Program) -> list[str]:
    """A note on the stacks that a pass over linears leaves as they are; nothing where there are none."""
    found = stacks(program)
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
