"""Experts beside a linear: low-rank branches, a token through those that its router scores best.

    s = linear(r, R)                                   scores [..., T], or the norms of T groups of rows of R
    p = softmax(s);  g = the top of p over their sum, 0 elsewhere                                  [..., T]
    y = u + scale * (linear(act(linear(x, A)) * linear(g, spread), B) + linear(g, biases))

`u = linear(z, W)`; x is z or u, `r` what enters another linear of the same block, or z. All experts are
computed, most are multiplied by zero: the graph is static. A branch whose gate is always 1 is an adapter.
"""

import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from sparsify.ir.features.beside import unpacked, unrounded
from sparsify.ir.features.feature import Feature
from sparsify.ir.graph import Writer, redirect, sweep
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import expert_branches
from sparsify.ir.views.linear import Linear, linears

aten = torch.ops.aten
_LEAST_ENERGY = 1e-12


@dataclass(frozen=True)
class Form:
    """How the experts beside a linear are computed; the plan keeps it by the path of the weight.

    `top` of `experts` serve a token. `gate` rows of the router belong to each: 1 for a score, more for the
    norm of as many. `reads` says what A reads: the `input` of the linear or its `output`. The router reads
    what enters the linear of the weight `routed`.
    """

    experts: int
    top: int
    routed: str
    gate: int = 0
    scale: float = 1.0
    activation: Literal["none", "gelu"] = "none"
    reads: Literal["input", "output"] = "input"


@dataclass(frozen=True)
class Tensors:
    """`router [T * max(gate, 1), in]`, `a [T * rank, in]`, `b [out, T * rank]` and `biases [out, T]`."""

    router: Tensor
    a: Tensor
    b: Tensor
    biases: Tensor | None = None


@dataclass(frozen=True)
class Experts:
    """The experts beside one use of a weight.

    `probabilities [..., T]` is the softmax over all of them, `numbers [..., top]` say which serve, `output`
    is u and `total` y.
    """

    weight: str
    probabilities: fx.Node
    numbers: fx.Node
    output: fx.Node
    total: fx.Node


def add_experts(program: Program, uses: Sequence[Linear], form: Form, tensors: Tensors) -> None:
    """Put experts beside every use of one weight, and their form into the plan."""
    weight = uses[0].weight
    _store(program, weight, form, tensors)
    program.plan.setdefault("experts", {})[weight] = asdict(form)
    entering = {view.weight: view for view in linears(program)}[form.routed]
    for use in uses:
        _beside(program, use, unrounded(entering if form.routed != weight else use), form)


def experts_beside(program: Program) -> list[Experts]:
    """The experts beside every use of a weight, in graph order."""
    held = {expert_branches(weight)[3]: weight for weight in program.plan.get("experts", {})}
    return [_read(held[view.weight], view.node) for view in linears(program) if view.weight in held]


def drop_experts(program: Program, found: Experts) -> None:
    """Take the experts beside one use out again; the last use takes them from the plan."""
    redirect(found.total, found.output)
    sweep(program)
    if not any(other.weight == found.weight for other in experts_beside(program)):
        del program.plan["experts"][found.weight]


def carry_experts(made: Program, program: Program) -> None:
    """Put the experts of one program beside the same linears of another; they may be packed in the first."""
    uses: dict[str, list[Linear]] = {}
    for view in linears(made):
        uses.setdefault(view.weight, []).append(view)
    for weight, entry in program.plan.get("experts", {}).items():
        if weight in uses:
            router, _, a, b, biases, _ = (
                unpacked(program, path) for path in expert_branches(weight)
            )
            assert router is not None
            assert a is not None
            assert b is not None
            add_experts(made, uses[weight], Form(**entry), Tensors(router, a, b, biases))


def _store(program: Program, weight: str, form: Form, tensors: Tensors) -> None:
    router, sums, a, b, biases, spread = expert_branches(weight)
    learnt = {router: tensors.router, a: tensors.a, b: tensors.b, biases: tensors.biases}
    for path, value in learnt.items():
        if value is not None:
            program.put(path, value, trainable=True)
    one = torch.eye(form.experts, dtype=tensors.a.dtype, device=tensors.a.device)
    rank = tensors.a.shape[0] // form.experts
    program.put(spread, one.repeat_interleave(rank, 0))
    if form.gate:
        program.put(sums, one.repeat_interleave(form.gate, 1))


def _beside(program: Program, use: Linear, entering: fx.Node, form: Form) -> None:
    """The nodes of the experts behind one use of the weight."""
    _, _, a, b, biases, spread = expert_branches(use.weight)
    writer = Writer(program, after=use.node)
    gates = _gates(writer, use.weight, entering, form)
    read = use.node if form.reads == "output" else unrounded(use)
    inner = first = writer.call(aten.linear.default, read, writer.read(a))
    if form.activation == "gelu":
        inner = writer.call(aten.gelu.default, inner)
    wide = writer.call(aten.linear.default, gates, writer.read(spread))
    mixed = writer.call(aten.mul.Tensor, inner, wide)
    branch = writer.call(aten.linear.default, mixed, writer.read(b))
    if program.has(biases):
        bias = writer.call(aten.linear.default, gates, writer.read(biases))
        branch = writer.call(aten.add.Tensor, branch, bias)
    if form.scale != 1:
        branch = writer.call(aten.mul.Tensor, branch, form.scale)
    total = writer.call(aten.add.Tensor, use.node, branch)
    redirect(use.node, total, but=(total, first))


def _gates(writer: Writer, weight: str, entering: fx.Node, form: Form) -> fx.Node:
    """What each expert's branch is multiplied by, `[..., T]`: `top` of them sum to 1, the others are 0."""
    router, sums, *_ = expert_branches(weight)
    scores = writer.call(aten.linear.default, entering, writer.read(router))
    if form.gate:
        squares = writer.call(aten.mul.Tensor, scores, scores)
        energies = writer.call(aten.linear.default, squares, writer.read(sums))
        # The root has no slope at zero, where rows of padding often are; training would get NaN.
        energies = writer.call(aten.clamp_min.default, energies, _LEAST_ENERGY)
        scores = writer.call(aten.sqrt.default, energies)
    each = writer.call(aten.softmax.int, scores, -1)
    best = writer.call(aten.topk.default, each, form.top)
    values, numbers = (writer.call(operator.getitem, best, place) for place in (0, 1))
    whole = writer.call(aten.sum.dim_IntList, values, [-1], True)
    shares = writer.call(aten.div.Tensor, values, whole)
    empty = writer.call(aten.zeros_like.default, each)
    return writer.call(aten.scatter.src, empty, -1, numbers, shares)


def _read(weight: str, branch: fx.Node) -> Experts:
    """The experts whose B is multiplied by at a node."""
    mixed: Any = branch.args[0]
    gates = mixed.args[1].args[0]
    empty, _, numbers, _ = gates.args
    total = branch
    while not (total.target is aten.add.Tensor and total.args[1] is branch):
        # Past the biases and the scale, which come before the sum.
        branch, (total,) = total, total.users
    output: Any = total.args[0]
    return Experts(weight, empty.args[0], numbers, output, total)


FEATURES = (Feature("experts", expert_branches(""), experts_beside, drop_experts, carry_experts),)
