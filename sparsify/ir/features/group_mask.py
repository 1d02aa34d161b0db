"""Channel and head masks in the graph: a boolean `[size]` spread over the inputs of a linear."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsify.errors import SparsifyError
from sparsify.ir.features.feature import Feature
from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.ops.probe import probe
from sparsify.ir.ops.rounding import quantize_activations
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import feature_of, group_mask
from sparsify.ir.views.composition import reads
from sparsify.ir.views.linear import Linear, linears, products

aten = torch.ops.aten
KINDS = ("channels", "heads")
# What may stand between a group mask and the linear it masks.
_PASSED = (
    probe,
    quantize_activations,
    aten.view.default,
    aten.reshape.default,
    aten.mul.Tensor,
)


@dataclass(frozen=True)
class GroupMask:
    """A channel or head mask on the input of a linear: `y = (x * expand(mask)) W^T`.

    `path` is the boolean mask `[size]`, `product` the masked activation, `x` the one before it.
    """

    linear: Linear
    kind: str
    path: str
    product: fx.Node
    x: fx.Node


def group_masks(program: Program) -> list[GroupMask]:
    """Every channel and head mask of the program, in graph order."""
    found = []
    for linear in products(program):
        for kind in KINDS:
            path = group_mask(linear.weight, kind)
            product = _masked_input(linear.x, path) if program.has(path) else None
            if product is not None:
                x = product.args[0]
                assert isinstance(x, fx.Node)
                found.append(GroupMask(linear, kind, path, product, x))
    return found


def add_group_mask(program: Program, linear: Linear, kind: str, size: int, index: Tensor) -> None:
    """Multiply the input `x [..., in]` of a linear by a mask `[size]`, each entry over its inputs.

    `index [in]` is the group of each input. The inputs of a group must stand together, all groups
    equally long, which is how heads and channels lie in memory; SparsifyError otherwise. Branches that passes
    put beside the linear, and read its input too, read the product.
    """
    width = index.numel() // size
    if not torch.equal(index, torch.arange(size).repeat_interleave(width)):
        raise SparsifyError(f"the {kind} at the input of @{linear.weight} do not lie in equal runs")
    readers = [linear.node, *_branches_on(program, linear)]
    first = next(node for node in program.graph.nodes if node in readers)
    writer = Writer(program, before=first)
    mask = writer.buffer(
        group_mask(linear.weight, kind),
        torch.ones(size, dtype=torch.bool, device=program.tensor(linear.weight).device),
    )
    if width > 1:
        mask = writer.call(aten.repeat_interleave.self_int, mask, width)
    product = writer.call(aten.mul.Tensor, linear.x, mask)
    for reader in readers:
        reader.replace_input_with(linear.x, product)


def expand_group_mask(program: Program, mask: GroupMask, inputs: int) -> Tensor:
    """The mask over all inputs of its linear, boolean `[in]`."""
    value = program.tensor(mask.path)
    return value.repeat_interleave(inputs // value.numel())


def drop_group_mask(program: Program, mask: GroupMask) -> None:
    """Let the linear read the unmasked input."""
    redirect(mask.product, mask.x)
    sweep(program)


def _branches_on(program: Program, linear: Linear) -> list[fx.Node]:
    """The linears that passes have added on the input of one."""
    known = {path for path, _ in program.tensors()}
    return [
        view.node
        for view in linears(program)
        if view.x is linear.x and view.node is not linear.node and feature_of(view.weight, known)
    ]


def _masked_input(x: fx.Node, path: str) -> fx.Node | None:
    """The product with a mask that feeds a linear's input, probes and reshapes in between passed over."""
    node = x
    for _ in range(6):
        if node.op != "call_function":
            return None
        if node.target is aten.mul.Tensor and reads(node.args[1], path):
            return node
        if node.target not in _PASSED:
            return None
        first = node.args[0]
        if not isinstance(first, fx.Node):
            return None
        node = first
    return None


def _of(kind: str) -> Feature:
    return Feature(
        f"mask.{kind}",
        (group_mask("", kind),),
        lambda program: [mask for mask in group_masks(program) if mask.kind == kind],
        drop_group_mask,
    )


FEATURES = tuple(_of(kind) for kind in KINDS)
