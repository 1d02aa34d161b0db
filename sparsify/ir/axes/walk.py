"""The forward walk: every op of a program ties, refines or pins axes."""

import operator
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.axes.analysis import Analysis, Axes, arguments
from sparsify.ir.axes.axis import Axis, Conflict
from sparsify.ir.axes.rules.compute import COMPUTE
from sparsify.ir.axes.rules.cut import CUT
from sparsify.ir.axes.rules.elementwise import ELEMENTWISE, Rule, overloads
from sparsify.ir.axes.rules.product import PRODUCT
from sparsify.ir.axes.rules.route import KEEPING, ROUTE
from sparsify.ir.axes.rules.shape import SHAPE
from sparsify.ir.ops.cluster_of import cluster_of
from sparsify.ir.ops.op import opname
from sparsify.ir.ops.registry import op_of
from sparsify.ir.program import Program

__all__ = ["Analysis", "analyse"]

RULES = {**ELEMENTWISE, **SHAPE, **CUT, **COMPUTE, **PRODUCT, **ROUTE}
# Ops whose rules read the domain of the numbers they are given.
_KNOWING = frozenset(
    [
        cluster_of,
        *overloads(
            "sort.default sort.stable histc.default index.Tensor index_select.default gather.default"
        ),
    ]
)


def analyse(program: Program, *, boundary: bool = False) -> Analysis:
    """The coupled axes of a program whose nodes are typed.

    Each op follows its rule; an op without one pins every axis it reads or writes, and says so. Inputs and
    outputs pin theirs, unless with `boundary` they may change with the program. It is a fact of the program,
    found once until graph or tensors change: read it, leave it.
    """
    return program.fact(("axes", boundary), partial(_walked, boundary=boundary))


def _walked(program: Program, *, boundary: bool) -> Analysis:
    analysis = Analysis(program, RULES)
    for node in program.graph.nodes:
        if node.op == "get_attr":
            _read(analysis, node)
        elif node.op == "placeholder":
            reason = None if boundary else f"input {node.target}"
            analysis.axes[node] = analysis.like(node.meta["val"], reason)
            analysis.inputs[str(node.target)] = analysis.axes[node]
        elif node.op == "output":
            for source in () if boundary else node.all_input_nodes:
                _pin_all(analysis, source, "graph output")
        else:
            _visit(analysis, node)
    return analysis


def _read(analysis: Analysis, node: fx.Node) -> None:
    path = str(node.target)
    if path not in analysis.tensors:
        shape = analysis.program.tensor(path).shape
        analysis.tensors[path] = [Axis(int(size)) for size in shape]
    analysis.axes[node] = analysis.tensors[path]
    analysis.constant.add(node)


def _visit(analysis: Analysis, node: fx.Node) -> None:
    sources = node.all_input_nodes
    if sources and all(source in analysis.constant for source in sources):
        analysis.constant.add(node)
    value = node.meta["val"]
    if node.target is operator.getitem and sources and sources[0] in analysis.parts:
        number = _number(node.args[1])
        analysis.axes[node] = analysis.parts[sources[0]][number]
        domain = analysis.part_domains.get(sources[0], {number: None})[number]
        if domain is not None:
            analysis.domains[node] = domain
        return
    _follow_domains(analysis, node)
    if not _has_tensors(value):
        if node.target is not torch.ops.aten.sym_size.int:
            for source in sources:
                _pin_all(analysis, source, f"{opname(node)} at {node.name} reads its values")
        return
    rule = _rule(node.target)
    try:
        if rule is None:
            raise Conflict("no rule")
        _store(analysis, node, rule(analysis, node, _bound(node)))
    except Conflict:
        # A rule says that it was not written for this form of its op: as safe as no rule at all.
        what = "has no axis rule" if rule is None else f"at {node.name} has a form without a rule"
        reason = f"op {opname(node)} {what}"
        _give_up(analysis, node, reason)
    except Exception as error:
        error.add_note(f"in the axis rule of {opname(node)} at {node.name}: {node.format_node()}")
        raise


def _rule(target: Any) -> Rule | None:
    own = op_of(target)
    return own.axes if own is not None else RULES.get(target) or RULES.get(str(target))


def _follow_domains(analysis: Analysis, node: fx.Node) -> None:
    """Numbers of indices go on through ops that move them; another op that reads them pins."""
    for source in node.all_input_nodes:
        domain = analysis.domains.get(source)
        if domain is not None and node.target in KEEPING and source is node.args[0]:
            analysis.domains[node] = domain
        elif domain is not None and node.target not in _KNOWING:
            domain.pin(f"{opname(node)} at {node.name} computes with numbers of its indices")


def _bound(node: fx.Node) -> dict[str, Any]:
    return arguments(node) if isinstance(node.target, torch._ops.OpOverload) else {}


def _store(analysis: Analysis, node: fx.Node, result: Any) -> None:
    """Keep a rule's result after holding it against the sizes the node really has."""
    value = node.meta["val"]
    single = isinstance(value, Tensor)
    pairs = [(value, result)] if single else list(zip(value, result, strict=True))
    for tensor, axes in pairs:
        sizes = [analysis.length(size)[0] for size in tensor.shape]
        if [axis.root().size for axis in axes] != sizes:
            raise Conflict(f"{axes} is not {sizes}")
    if single:
        analysis.axes[node] = result
    else:
        analysis.parts[node] = result


def _give_up(analysis: Analysis, node: fx.Node, reason: str) -> None:
    for source in node.all_input_nodes:
        _pin_all(analysis, source, reason)
    value = node.meta["val"]
    if isinstance(value, Tensor):
        analysis.axes[node] = analysis.like(value, reason)
    else:
        analysis.parts[node] = [
            analysis.like(item, reason) if isinstance(item, Tensor) else [] for item in value
        ]


def _pin_all(analysis: Analysis, node: fx.Node, reason: str) -> None:
    lists: list[Axes] = analysis.parts.get(node, [])
    domain = [analysis.domains[node]] if node in analysis.domains else []
    for axes in [analysis.axes.get(node, []), domain, *lists]:
        for axis in axes:
            axis.pin(reason)


def _has_tensors(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(isinstance(item, Tensor) for item in value)
    return isinstance(value, Tensor)


def _number(value: Any) -> int:
    assert isinstance(value, int)
    return value
