"""The record of an op that may stand in a graph beside ATen's: all that others must know of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

# The analysis, the node, its arguments by name (of overloads alone) -> the axes of what the node gives; see
# `sparsify.ir.axes.rules`.
AxisRule = Callable[[Any, fx.Node, dict[str, Any]], Any]
# The arguments of a call and its result, as fake tensors -> multiply-adds.
Cost = Callable[[Sequence[Any], Tensor], int]


@dataclass(frozen=True)
class Op:
    """An op: the function that stands in graphs, and what is known of it.

    `function` returns new tensors that follow from its arguments alone: a plain function of ATen's ops, or
    an overload of `torch.library`. `name` is how it is stored, `library.word`, for an overload as torch
    spells it. Without `axes` it pins every axis it touches. `cost` are its multiply-adds, none without.
    `onnx` gives the function by which torch.onnx writes an overload; plain functions need none. `unrounded`
    computes the same without rounding its input, in whatever precision that comes, for ops that do.
    """

    function: Callable[..., Any]
    name: str
    axes: AxisRule | None = None
    cost: Cost | None = None
    onnx: Callable[[], Callable[..., Any]] | None = None
    unrounded: Callable[..., Any] | None = None


def overload(
    function: torch._ops.OpOverload,
    axes: AxisRule | None = None,
    cost: Cost | None = None,
    onnx: Callable[[], Callable[..., Any]] | None = None,
    unrounded: Callable[..., Any] | None = None,
) -> Op:
    """The record of an op of `torch.library`."""
    return Op(function, str(function), axes, cost, onnx, unrounded)


def product(left: int) -> Cost:
    """Result elements times the last axis of the argument `left`, whatever the leading axes are."""
    return lambda args, result: result.numel() * args[left].shape[-1]


def opname(node: fx.Node) -> str:
    """The op of a node as a human reads it."""
    name = str(node.target) if isinstance(node.target, torch._ops.OpOverload) else node.op
    if node.op == "call_function" and not isinstance(node.target, torch._ops.OpOverload):
        name = getattr(node.target, "__name__", str(node.target))
    return name.removeprefix("aten.").removesuffix(".default")
