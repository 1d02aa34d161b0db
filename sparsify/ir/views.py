"""Typed readings of nodes: passes look at programs through these and never at `node.args`."""

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsify.errors import OptionError
from sparsify.ir.names import group_mask, lora, weight_mask
from sparsify.ir.ops import probe as probe_op
from sparsify.ir.program import Program
from sparsify.words import nearest

aten = torch.ops.aten


@dataclass(frozen=True)
class Branch:
    """A low-rank branch `W + scale * B A`: paths of `A [rank, in]` and `B [out, rank]`."""

    a: str
    b: str
    scale: float


@dataclass(frozen=True)
class Linear:
    """One use of a weight as a linear map `y = x W^T` (plus a bias, if any).

    `weight` is its path, stored `[out, in]`, or `[in, out]` when `transposed`. `operand` is the node
    that enters the op as weight: the weight itself, or its masked and branched composition.
    """

    node: fx.Node
    x: fx.Node
    weight: str
    operand: fx.Node
    transposed: bool
    mask: str | None = None
    branch: Branch | None = None


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
    base = weight_of(operand)
    if base is None or program.tensor(base).dim() != 2:
        return None
    mask = weight_mask(base)
    return Linear(
        node=node,
        x=x,
        weight=base,
        operand=operand,
        transposed=transposed,
        mask=mask if _reads(operand, mask) else None,
        branch=_branch(operand, base),
    )


def weight_of(operand: fx.Node) -> str | None:
    """The path of the weight under a composition `mask * (W + c * B A)`; None when there is none.

    A product or sum that the model itself makes of a weight is not ours to fold: None as well.
    """
    node, added = operand, list[object]()
    while node.op == "call_function" and node.target in (aten.mul.Tensor, aten.add.Tensor):
        first, second = node.args[:2]
        if not isinstance(first, fx.Node):
            return None
        node = first
        added.append(second)
    if node.op != "get_attr":
        return None
    path = str(node.target)
    ours = (weight_mask(path), lora(path)[0])
    return path if all(any(_reads(part, own) for own in ours) for part in added) else None


def effective_weight(program: Program, linear: Linear) -> Tensor:
    """`mask * (W + c * B A)` as the graph computes it, in the layout the weight is stored in."""
    weight = program.tensor(linear.weight).detach()
    if linear.branch is not None:
        a = program.tensor(linear.branch.a).detach()
        b = program.tensor(linear.branch.b).detach()
        delta = b @ a
        weight = weight + linear.branch.scale * (delta.t() if linear.transposed else delta)
    return weight if linear.mask is None else weight * program.tensor(linear.mask)


def out_in(linear: Linear, stored: Tensor) -> Tensor:
    """A tensor in the weight's stored layout seen as `[out, in]` (a view; its own inverse)."""
    return stored.t() if linear.transposed else stored


def consumers(program: Program, path: str) -> list[fx.Node]:
    """Every node that reads a tensor, through whichever read node."""
    return [
        user
        for node in program.graph.nodes
        if node.op == "get_attr" and node.target == path
        for user in node.users
    ]


def targeted(program: Program, targets: Sequence[str], ignore: Sequence[str]) -> list[Linear]:
    """The linears whose weight path matches a glob of `targets` and none of `ignore`.

    A weight that also serves as an embedding table, or whose output is the program's output (the
    language-model head), is left out unless `targets` names it without a wildcard start.
    Raises OptionError when a glob of `targets` matches no linear at all, with the nearest path.
    """
    every = linears(program)
    for glob in (*targets, *ignore):
        if not any(_matches(view.weight, glob) for view in every):
            paths = {view.weight for view in every}
            if not glob.endswith(".weight"):
                paths = {path.removesuffix(".weight") for path in paths}
            raise OptionError(f"the target '{glob}' matches no linear{nearest(glob, paths)}")
    heads = {view.weight for view in every if _is_head(program, view)}
    return [
        view
        for view in every
        if any(_matches(view.weight, g) and (g != "*" or view.weight not in heads) for g in targets)
        and not any(_matches(view.weight, g) for g in ignore)
    ]


def refuse_shared(program: Program, views: Sequence[Linear]) -> None:
    """Raise OptionError for a weight that another kind of op reads as well, a tied embedding say.

    A mask or a branch on it could never be folded: the other reader would change.
    """
    for view in views:
        if any(linear_at(program, user) is None for user in _readers(program, view.weight)):
            raise OptionError(
                f"@{view.weight} is no weight of linears alone (a tied embedding?), so that a mask or branch "
                "on it could not be folded; leave it out of targets"
            )


def _readers(program: Program, path: str) -> list[fx.Node]:
    """The nodes that read a tensor, those that compose a weight passed over."""
    composing = (aten.mul.Tensor, aten.add.Tensor)
    found = []
    queue = consumers(program, path)
    while queue:
        node = queue.pop()
        if node.op == "call_function" and node.target in composing and weight_of(node) == path:
            queue += node.users
        else:
            found.append(node)
    return found


@dataclass(frozen=True)
class Probe:
    """A probe on an activation `x [..., features]`; `statistics` are the paths of its buffers."""

    node: fx.Node
    x: fx.Node
    statistics: tuple[str, ...]


def probes(program: Program) -> Iterator[Probe]:
    """Every probe of the program, in graph order."""
    for node in program.graph.nodes:
        if (view := probe_at(node)) is not None:
            yield view


def probe_at(node: fx.Node) -> Probe | None:
    """The probe at a node, if it is one."""
    if node.op != "call_function" or node.target is not probe_op:
        return None
    x, *statistics = node.args
    assert isinstance(x, fx.Node)
    return Probe(node, x, tuple(str(s.target) for s in statistics if isinstance(s, fx.Node)))


def probe_behind(x: fx.Node) -> Probe | None:
    """The probe that watches an activation, a group mask inserted after it passed over."""
    probe = probe_at(x)
    if probe is None and x.op == "call_function" and x.target is aten.mul.Tensor:
        first = x.args[0]
        return probe_at(first) if isinstance(first, fx.Node) else None
    return probe


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
    for linear in linears(program):
        for kind in ("channels", "heads"):
            path = group_mask(linear.weight, kind)
            product = _masked_input(linear.x, path) if program.has(path) else None
            if product is not None:
                x = product.args[0]
                assert isinstance(x, fx.Node)
                found.append(GroupMask(linear, kind, path, product, x))
    return found


def feature_size(node: fx.Node) -> int:
    """The size of the last axis of a node's value."""
    return int(node.meta["val"].shape[-1])


def _masked_input(x: fx.Node, path: str) -> fx.Node | None:
    """The product with a mask that feeds a linear's input, probes and reshapes in between passed over."""
    node = x
    for _ in range(6):
        if node.op != "call_function":
            return None
        if node.target is aten.mul.Tensor and _reads(node.args[1], path):
            return node
        if node.target not in (probe_op, aten.view.default, aten.reshape.default, aten.mul.Tensor):
            return None
        first = node.args[0]
        if not isinstance(first, fx.Node):
            return None
        node = first
    return None


def _branch(operand: fx.Node, base: str) -> Branch | None:
    a, b = lora(base)
    node = operand
    while node.op == "call_function" and node.target in (aten.mul.Tensor, aten.add.Tensor):
        second = node.args[1]
        if node.target is aten.add.Tensor and isinstance(second, fx.Node) and _reads(second, a):
            scale = second.args[1] if second.target is aten.mul.Tensor else 1.0
            assert isinstance(scale, int | float)
            return Branch(a, b, float(scale))
        first = node.args[0]
        assert isinstance(first, fx.Node)
        node = first
    return None


def _reads(node: object, path: str, depth: int = 4) -> bool:
    """Whether a small constant sub-graph reads a tensor; `c * (B A)^T` is the deepest we build."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "get_attr":
        return node.target == path
    return depth > 0 and any(_reads(a, path, depth - 1) for a in node.all_input_nodes)


def _matches(path: str, glob: str) -> bool:
    return fnmatch.fnmatchcase(path, glob) or fnmatch.fnmatchcase(
        path.removesuffix(".weight"), glob
    )


def _is_head(program: Program, view: Linear) -> bool:
    """Whether a linear produces the program's output or shares its weight with another kind of op."""
    (output,) = program.graph.find_nodes(op="output")
    if view.node in output.all_input_nodes:
        return True
    return any(
        linear_at(program, user) is None and user.target is aten.embedding.default
        for user in consumers(program, view.weight)
    )
