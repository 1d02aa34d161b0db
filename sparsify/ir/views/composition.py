"""What enters a linear as its weight, by the nodes: `Q(S * mask * (W + c * B A))`, each part optional."""

from dataclasses import dataclass

import torch
from torch import fx

from sparsify.ir.ops.rounding import quantize_weight
from sparsify.ir.ops.scale_weight import scale_weight
from sparsify.ir.tensor_names import lora, row_scales, scales_of, weight_mask

aten = torch.ops.aten
_COMPOSING = (aten.mul.Tensor, aten.add.Tensor, quantize_weight, scale_weight)


@dataclass(frozen=True)
class Branch:
    """A low-rank branch `W + scale * B A`: paths of `A [rank, in]` and `B [out, rank]`."""

    a: str
    b: str
    scale: float


@dataclass(frozen=True)
class WeightQuantizer:
    """The rounding `Q` of a weight, outermost: `scales` is the path of its float16 `[out, groups]`.

    `values` is `int8` or `int4`; `group` columns share a scale.
    """

    node: fx.Node
    scales: str
    values: str
    group: int


@dataclass(frozen=True)
class Composition:
    """A stored weight by its path and what passes have put around it.

    `row_scales` is the path of the S of blocks of rows, `[out, blocks]`.
    """

    weight: str
    mask: str | None = None
    branch: Branch | None = None
    quantizer: WeightQuantizer | None = None
    row_scales: str | None = None


def chain(operand: fx.Node) -> list[fx.Node]:
    """The nodes of a composition, from the one that enters the linear down to the innermost operand."""
    nodes = [operand]
    while nodes[-1].op == "call_function" and nodes[-1].target in _COMPOSING:
        inner = nodes[-1].args[0]
        if not isinstance(inner, fx.Node):
            break
        nodes.append(inner)
    return nodes


def composition_at(operand: fx.Node) -> Composition | None:
    """The composition that a node computes; None when there is no named weight under it.

    A product or sum that the model itself makes of a weight is not ours to fold: None as well.
    """
    *parts, base = chain(operand)
    if base.op != "get_attr":
        return None
    weight = str(base.target)
    mask, branch, quantizer, scales = None, None, None, None
    for node in parts:
        if node.target is quantize_weight:
            quantizer = _quantizer(node, weight)
        elif node.target is scale_weight:
            scales = row_scales(weight)
        elif node.target is aten.mul.Tensor and reads(node.args[1], weight_mask(weight)):
            mask = weight_mask(weight)
        elif node.target is aten.add.Tensor and reads(node.args[1], lora(weight)[0]):
            branch = _branch(node, weight)
        else:
            return None
    return Composition(weight, mask, branch, quantizer, scales)


def is_composing(node: fx.Node, weight: str) -> bool:
    """Whether a node is a part of the composition around a stored weight."""
    if node.op != "call_function" or node.target not in _COMPOSING:
        return False
    found = composition_at(node)
    return found is not None and found.weight == weight


def reads(node: object, path: str, depth: int = 4) -> bool:
    """Whether a small constant sub-graph reads a tensor; `c * (B A)^T` is the deepest we build."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "get_attr":
        return node.target == path
    return depth > 0 and any(reads(a, path, depth - 1) for a in node.all_input_nodes)


def _branch(node: fx.Node, weight: str) -> Branch:
    product = node.args[1]
    assert isinstance(product, fx.Node)
    scale = product.args[1] if product.target is aten.mul.Tensor else 1.0
    assert isinstance(scale, int | float)
    return Branch(*lora(weight), float(scale))


def _quantizer(node: fx.Node, weight: str) -> WeightQuantizer:
    values, group = node.args[2:4]
    assert isinstance(values, str)
    assert isinstance(group, int)
    return WeightQuantizer(node, scales_of(weight), values, group)
