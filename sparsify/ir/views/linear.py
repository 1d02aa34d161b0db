"""Typed readings of nodes: passes look at programs through these and never at `node.args`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsify.ir.ops.grouped import BATCHED, GROUPED
from sparsify.ir.ops.rounding import quantize_activations, quantize_weight
from sparsify.ir.ops.scale_weight import scale_weight
from sparsify.ir.program import Program
from sparsify.ir.views.composition import (
    Branch,
    Composition,
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
    The matrices of experts may be stored together, `[experts, out, in]` or `[experts, in, out]`: each
    multiplies a group of the rows of `x`, those up to its entry of `ends`, or `x[expert]` where that is None.
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
    ends: fx.Node | None = None

    @property
    def stacked(self) -> bool:
        """Whether its matrices are those of experts, stored together."""
        return str(self.node.target) in (*GROUPED, *BATCHED)

    @property
    def entering(self) -> fx.Node:
        """The node that enters the product: the operand, or the matrices of experts turned before it."""
        node = self.node.args[2 if self.node.target is aten.addmm.default else 1]
        assert isinstance(node, fx.Node)
        return node

    @property
    def reader(self) -> fx.Node:
        """The node that reads the operand."""
        return self.node if self.entering is self.operand else self.entering


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
    return _composed(node, x, operand, found, transposed=transposed)


def products(program: Program) -> list[Linear]:
    """Every linear map, those of experts too, in graph order."""
    return [view for node in program.graph.nodes if (view := product_at(program, node)) is not None]


def product_at(program: Program, node: fx.Node) -> Linear | None:
    """The linear map that a node computes: as `linear_at`, or with matrices of experts stored together."""
    if str(node.target) not in (*GROUPED, *BATCHED):
        return linear_at(program, node)
    x, entering = node.args[:2]
    if not isinstance(x, fx.Node) or not isinstance(entering, fx.Node):
        return None
    turned = entering.target is aten.transpose.int and set(entering.args[1:]) in ({-1, -2}, {1, 2})
    operand = entering.args[0] if turned else entering
    assert isinstance(operand, fx.Node)
    found = composition_at(operand)
    if found is None or program.tensor(found.weight).dim() != 3:
        return None
    if turned and len(entering.users) > 1:
        return None
    ends = node.args[2] if str(node.target) in GROUPED else None
    assert ends is None or isinstance(ends, fx.Node)
    return _composed(node, x, operand, found, transposed=not turned, ends=ends)


def _composed(
    node: fx.Node,
    x: fx.Node,
    operand: fx.Node,
    found: Composition,
    *,
    transposed: bool,
    ends: fx.Node | None = None,
) -> Linear:
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
        ends=ends,
    )


def branched_weight(program: Program, linear: Linear) -> Tensor:
    """`W + c * B A` as the graph computes it, in the layout the weight is stored in."""
    weight = program.tensor(linear.weight).detach()
    if linear.branch is None:
        return weight
    a, b = program.tensor(linear.branch.a).detach(), program.tensor(linear.branch.b).detach()
    delta = b @ a
    return weight + out_in(linear, delta) * linear.branch.scale


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


def apart(linear: Linear, value: Tensor) -> Sequence[Tensor]:
    """What a tensor `[..., out, in]` holds for each matrix of a linear: those of experts one by one."""
    return value.unbind() if linear.stacked else (value,)


def together(linear: Linear, values: Sequence[Tensor]) -> Tensor:
    """The inverse of `apart`."""
    return torch.stack(tuple(values)) if linear.stacked else values[0]


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
    if linear.stacked:
        return None
    args, place = linear.node.args, 0 if linear.transposed else 2
    bias = args[place] if len(args) > place else linear.node.kwargs.get("bias")
    return bias if isinstance(bias, fx.Node) else None
