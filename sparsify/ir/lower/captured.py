"""A program as `torch.onnx` takes it, captured once.

`torch.onnx` traces a second time to take ops apart that it cannot write, which is more than half of what an
export costs. Programs seldom hold such ops: where there is none, the second trace is left out.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch.export import Dim, ExportedProgram

from sparsify.ir.lower.pipeline import lowered
from sparsify.ir.program import Program

_ATEN = torch.ops.aten
_CASTS = frozenset({_ATEN.to.dtype, _ATEN.to.dtype_layout, _ATEN.to.device})
_SHAPES = frozenset({_ATEN.reshape.default, _ATEN.view.default})


def captured(program: Program, *, apart: bool = False) -> ExportedProgram:
    """The lowered program with its varying dimensions, or whatever `torch.export` raises.

    With `apart` the second trace is made in any case.
    """
    exported = torch.export.export(
        lowered(program),
        (),
        kwargs=dict(program.sample),
        dynamic_shapes={
            name: dict.fromkeys(program.dynamic.get(name, {}), Dim.DYNAMIC)
            for name in program.sample
        },
    )
    if not apart:
        for node in list(exported.graph.nodes):
            _spell(node)
        _trace_once(exported)
    return exported


def _spell(node: fx.Node) -> None:
    """Name an op as `torch.onnx` knows it, `a & b` and casts; drop casts and shapes that change nothing."""
    if node.target is _ATEN.__and__.Tensor:
        node.target = _ATEN.bitwise_and.Tensor
    elif node.target is _ATEN.sort.stable:  # TopK is
        order = {name: value for name, value in node.kwargs.items() if name != "stable"}
        node.target, node.kwargs = _ATEN.sort.default, order
    elif node.target in _CASTS | _SHAPES:
        source = node.all_input_nodes[0]
        if _type(source) == _type(node):
            node.replace_all_uses_with(source)
            node.graph.erase_node(node)
        elif node.target in _CASTS:
            node.target, node.args = _ATEN._to_copy.default, (source,)
            node.kwargs = {"dtype": node.meta["val"].dtype}


def _type(node: fx.Node) -> tuple[torch.dtype, str]:
    """Number type and shape, varying sizes as they are written: to compare them would bind them."""
    value = node.meta["val"]
    return value.dtype, str(tuple(value.shape))


def _trace_once(exported: ExportedProgram) -> None:
    """Let `run_decompositions` give the program as it is, where it holds nothing that the table names."""
    whole = exported.run_decompositions

    def run_decompositions(table: Mapping[Any, Callable[..., Any]]) -> ExportedProgram:
        targets = {node.target for node in exported.graph.nodes if node.op == "call_function"}
        pure = not any(
            op._schema.is_mutable for op in targets if isinstance(op, torch._ops.OpOverload)
        )
        return exported if pure and targets.isdisjoint(table) else whole(dict(table))

    exported.run_decompositions = run_decompositions
