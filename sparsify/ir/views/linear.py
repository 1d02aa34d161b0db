"""Typed readings of nodes: passes look at programs through these and never at `node.args`."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsify.ir.ops.grouped import GROUPED
from sparsify.ir.ops.rounding import quantize_activations, quantize_weight
from sparsify.ir.ops.scale_weight import scale_weight
from sparsify.ir.program import Program
from sparsify.ir.views.composition import (
    Branch,
    WeightQuantizer,
    composition_at,
)
from sparsify.ir.views.probe import probe_at

aten = torch.ops.aten


@dataclass(frozen=True)
class InputQuantizer:
    """The rounding of the input of a linear, `group` features to a step; `on` is the path of its switch."""

    node: fx.Node
    on: str
    group: int


@dataclass(frozen=True)
class Linear:
    """One use of a weight as a linear map `y = x W^T` (plus a bias, if any).

    `weight` is its path, stored `[out, in]`, or `[in, out]` when `transposed`. `operand` is the node
    that enters the op as weight: the weight itself, or its composition `Q(S * mask * (W + c * B A))`.
    `x` is the node that enters as input, the rounded one where there is an input quantizer.
    """

    node: fx.Node
    x: fx.Node
    weight: str
    operand: fx.Node
    transposed: bool
    mask: str | None = None
    branch: Branch | None = None
    quantizer: WeightQuantizer | None = None
    row_scales: str | None = None
    input_quantizer: InputQuantizer | None = None


def linears(program: Program) -> list[Linear]:
    """Every linear map of the program whose weight is a named tensor, in graph order."""
    return [view for node in program.graph.nodes if (view := linear_at(program, node)) is not None]


def linear_at(program: Program, node: fx.Node) -> Linear | None:
    """The linear map a node computes; None when it is another op or its weight is not a named tensor."""
    if node.op != "call_function":
        return None
    if node.target is aten.linear.default:
        x, operand, transposed = node.args[0], node.args[1], False
    elif node.target is aten.addmm.default:
        x, operand, transposed = node.args[1], node.args[2], True
    else:
        return None
    if not isinstance(x, fx.Node) or not isinstance(operand, fx.Node):
        return None
    found = composition_at(operand)
    if found is None or program.tensor(found.weight).dim() != 2:
        return None
    return Linear(
        node=node,
        x=x,
        weight=found.weight,
        operand=operand,
        transposed=transposed,
        mask=found.mask,
        branch=found.branch,
        quantizer=found.quantizer,
        row_scales=found.row_scales,
        input_quantizer=_input_quantizer(x),
    )


def products(program: Program) -> list[Linear]:
    """Every linear map, those of experts too, in graph order."""
    return [view for node in program.graph.nodes if (view := product_at(program, node)) is not None]


def product_at(program: Program, node: fx.Node) -> Linear | None:
    """The linear map that a node computes: as `linear_at`, or one a group of rows.

    The matrices of such a one are stored together, `[experts, out, in]`, or `[experts, in, out]` when
    it is `transposed`.
    """
    if str(node.target) not in GROUPED:
        return linear_at(program, node)
    x, operand = node.args[:2]
    if not isinstance(x, fx.Node) or not isinstance(operand, fx.Node):
        return None
    turned = operand.target is aten.transpose.int and set(operand.args[1:]) in ({-1, -2}, {1, 2})
    stored = operand.args[0] if turned else operand
    if not isinstance(stored, fx.Node) or stored.op != "get_attr":
        return None
    return Linear(node, x, str(stored.target), operand, transposed=not turned)


def branched_weight(program: Program, linear: Linear) -> Tensor:
    """`W + c * B A` as the graph computes it, in the layout the weight is stored in."""
    weight = program.tensor(linear.weight).detach()
    if linear.branch is None:
        return weight
    a, b = program.tensor(linear.branch.a).detach(), program.tensor(linear.branch.b).detach()
    delta = b @ a
    return weight + (delta.t() if linear.transposed else delta) * linear.branch.scale


def composed_weight(program: Program, linear: Linear) -> Tensor:
    """`S * mask * (W + c * B A)`, before any rounding, in the layout the weight is stored in."""
    weight = branched_weight(program, linear)
    if linear.mask is not None:
        weight = weight * program.tensor(linear.mask)
    if linear.row_scales is None:
        return weight
    scaled: Tensor = scale_weight(
        weight, program.tensor(linear.row_scales).detach(), linear.transposed
    )
    return scaled


def effective_weight(program: Program, linear: Linear) -> Tensor:
    """`Q(S * mask * (W + c * B A))` as the graph computes it, in the layout the weight is stored in."""
    weight = composed_weight(program, linear)
    if linear.quantizer is None:
        return weight
    scales, quantizer = program.tensor(linear.quantizer.scales), linear.quantizer
    rounded: Tensor = quantize_weight(
        weight, scales, quantizer.values, quantizer.group, linear.transposed
    )
    return rounded


def out_in(linear: Linear, stored: Tensor) -> Tensor:
    """A tensor in the weight's stored layout seen as `[out, in]` (a view; its own inverse).

    For experts `[experts, out, in]`.
    """
    return stored.mT if linear.transposed else stored


def consumers(program: Program, path: str) -> list[fx.Node]:
    """Every node that reads a tensor, through whichever read node."""
    return [
        user
        for node in program.graph.nodes
        if node.op == "get_attr" and node.target == path
        for user in node.users
    ]


def feature_size(node: fx.Node) -> int:
    """The size of the last axis of a node's value."""
    return int(node.meta["val"].shape[-1])


def _input_quantizer(x: fx.Node) -> InputQuantizer | None:
    """The quantizer that an input has come through, a probe inserted after it passed over."""
    probe = probe_at(x)
    node = x if probe is None else probe.x
    if node.op != "call_function" or node.target is not quantize_activations:
        return None
    switch, group = node.args[1:3]
    assert isinstance(switch, fx.Node)
    assert isinstance(group, int)
    return InputQuantizer(node, str(switch.target), group)


def bias_path(linear: Linear) -> str | None:
    """The path of a linear's own bias; None when it has none, or one that is computed."""
    bias = own_bias(linear)
    return str(bias.target) if bias is not None and bias.op == "get_attr" else None


def own_bias(linear: Linear) -> fx.Node | None:
    """The node that a linear adds as its bias; None where it has none, as experts stored together."""
    if str(linear.node.target) in GROUPED:
        return None
    args, place = linear.node.args, 0 if linear.transposed else 2
    bias = args[place] if len(args) > place else linear.node.kwargs.get("bias")
    return bias if isinstance(bias, fx.Node) else None
