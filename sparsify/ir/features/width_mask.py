"""The mask of the residual width in the graph: one boolean `[hidden]` for the whole program.

linear(x, W)           ->  linear(x * mask, W)              wherever the width is taken in
layer_norm(x, ...)     ->  masked_layer_norm(x, mask, ...)  mean and variance of what is kept
rms_norm(x, ...)       ->  masked_rms_norm(x, mask, ...)
mean(x, -1)            ->  masked_mean(x, mask, -1)         as in a norm that is written out
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sparsify.errors import OptionError
from sparsify.ir.axes.analysis import Analysis
from sparsify.ir.axes.groups import Consumer, Group
from sparsify.ir.features.feature import Feature
from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.ops.masked_norms import masked_layer_norm, masked_mean, masked_rms_norm
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import group_mask
from sparsify.ir.views.linear import product_at

aten = torch.ops.aten
_SUFFIX = group_mask("", "hidden")
_MASKED: dict[Any, Callable[..., Any]] = {
    aten.mean.dim: masked_mean,
    aten.layer_norm.default: masked_layer_norm,
    aten.rms_norm.default: masked_rms_norm,
}
_BY_MATRIX = (aten.bmm.default, aten.matmul.default, aten.mm.default)
_PLAIN = {masked: plain for plain, masked in _MASKED.items()}


@dataclass(frozen=True)
class WidthMask:
    """The mask `[hidden]` at `path`, after the tensor at `weight`, and the nodes that read it."""

    weight: str
    path: str
    nodes: tuple[fx.Node, ...]


def width_masks(program: Program) -> list[WidthMask]:
    """Every mask of a residual width."""
    nodes: dict[str, list[fx.Node]] = {}
    for node in program.graph.nodes:
        path = str(node.target) if node.op == "get_attr" else ""
        weight = path.removesuffix(_SUFFIX)
        if weight != path and program.has(weight):
            nodes.setdefault(path, []).extend(node.users)
    return [WidthMask(p.removesuffix(_SUFFIX), p, tuple(users)) for p, users in nodes.items()]


def add_width_mask(program: Program, analysis: Analysis, group: Group) -> None:
    """Mask a residual width wherever it is averaged or taken in; all of it stays at first.

    Raises OptionError when something takes it in that has no place for a mask.
    """
    for consumer in group.consumers:
        if not _is_taken_in(program, consumer) or consumer.axis is not group.leaf:
            raise OptionError(
                f"the {group.kind} at {group.key} enters @{consumer.weight} unmaskably"
            )
    path = group_mask(group.key[0], "hidden")
    device = program.tensor(group.key[0]).device
    program.put(path, torch.ones(group.size, dtype=torch.bool, device=device))
    products: dict[fx.Node, fx.Node] = {}
    for consumer in group.consumers:
        if consumer.x not in products:
            writer = Writer(program, after=consumer.x)
            mask = writer.read(path)
            products[consumer.x] = writer.call(aten.mul.Tensor, consumer.x, mask)
        consumer.node.replace_input_with(consumer.x, products[consumer.x])
    for node in [node for axis, node in analysis.averaged if axis.root() is group.leaf]:
        writer = Writer(program, before=node)
        source, *rest = node.args
        masked = writer.call(_MASKED[node.target], source, writer.read(path), *rest, **node.kwargs)
        redirect(node, masked)
    sweep(program)


def _is_taken_in(program: Program, consumer: Consumer) -> bool:
    """Whether a consumer multiplies the last dimension of its input by a weight: a mask on that fits."""
    if product_at(program, consumer.node) is not None:
        return True
    return consumer.node.target in _BY_MATRIX and consumer.node.args[0] is consumer.x


def drop_width_mask(program: Program, mask: WidthMask) -> None:
    """Let the program read and average the whole width."""
    for node in mask.nodes:
        source, _, *rest = node.args
        if node.target in _PLAIN:
            writer = Writer(program, before=node)
            redirect(node, writer.call(_PLAIN[node.target], source, *rest, **node.kwargs))
        else:
            assert isinstance(source, fx.Node)
            redirect(node, source)
    sweep(program)


FEATURES = (Feature("mask.hidden", (_SUFFIX,), width_masks, drop_width_mask),)
