"""Reading the figures of a program off its graph: every matrix in turn, then the whole."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modelcard import TASK_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from sparsify.describe.cost import Cost
from sparsify.describe.cost import cost as cost_of
from sparsify.describe.count import count_parameters
from sparsify.describe.facts import Facts, Weight, kind
from sparsify.errors import SparsifyError
from sparsify.ir.facts.admission import admission_of_program
from sparsify.ir.facts.experts import expert_sets
from sparsify.ir.facts.multiply_adds import multiply_adds
from sparsify.ir.facts.weights import other_weights, zeros_in
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import blocks, packed
from sparsify.ir.views.linear import Linear, effective_weight, out_in, products
from sparsify.ir.views.packed import (
    BlockWeight,
    PackedLinear,
    block_weights,
    packed_linears,
    unblocked_weight,
    unpacked_weight,
)

_LENGTH = 128
_MS = (4, 8)  # of the patterns N:M that are looked for


@torch.no_grad()
def facts_of(program: Program) -> Facts:
    """The figures of a program; reads every weight once and runs it once on fake tensors."""
    weights = _weights(program)
    length = usual_length(program)
    cost = _cost_of_experts(program, length)
    return Facts(
        model=program.source.model_class,
        task=task_of(program.source.model_class),
        pipeline=tuple(program.log),
        parameters=count_parameters(program),
        were=sum(math.prod(shape) for shape in program.source.shapes.values()),
        zeros=sum(weight.zeros for weight in weights) + sum(map(zeros_in, other_weights(program))),
        multiply_adds=cost.multiply_adds if cost else multiply_adds(program, 1, length),
        length=length,
        weights=(*weights, *_gone(program, weights)),
        cost=cost,
    )


def _cost_of_experts(program: Program, length: int) -> Cost | None:
    """The cost of a program with experts; None without, or where the graph does not tell who chooses them."""
    try:
        return cost_of(program, 1, max(1, length)) if expert_sets(program) else None
    except SparsifyError:
        return None


def task_of(model_class: str) -> str:
    """The hub's word for what a model class of transformers is for; empty for any other class."""
    tasks: Mapping[str, Any] = {**TASK_MAPPING, "feature-extraction": MODEL_MAPPING_NAMES}
    fit = (task for task, classes in tasks.items() if model_class in _names(classes.values()))
    return next(fit, "")


def _weights(program: Program) -> list[Weight]:
    """Every matrix that is left, in the order of the graph; one of several uses once."""
    dense = {view.node: view for view in products(program)}
    packed_ones = {view.node: view for view in packed_linears(program)}
    in_blocks = {view.node: view for view in block_weights(program) if not view.is_table}
    found: dict[str, Weight] = {}
    for node in program.graph.nodes:
        if node in dense and dense[node].weight not in found:
            found[dense[node].weight] = _dense(program, dense[node])
        elif node in packed_ones:
            weight = _packed(program, packed_ones[node])
            found[weight.path] = weight
        elif node in in_blocks:
            weight = _in_blocks(program, in_blocks[node])
            found[weight.path] = weight
    return list(found.values())


def _dense(program: Program, view: Linear) -> Weight:
    stored = program.tensor(view.weight)
    value = out_in(view, effective_weight(program, view))
    was = program.source.shapes.get(view.weight, ())
    zeros = zeros_in(value)
    return Weight(
        path=view.weight,
        shape=tuple(value.shape),
        was=(*was[:-2], *was[:-3:-1]) if view.transposed else tuple(was),
        zeros=zeros,
        pattern=pattern_of(value) if zeros else "",
        packed=False,
        values=view.quantizer.values if view.quantizer else _word(stored.dtype),
        bytes=stored.nbytes,
    )


def _packed(program: Program, view: PackedLinear) -> Weight:
    path, layout = view.weight.removesuffix(packed("")), view.layout
    value = unpacked_weight(program, view)
    was = tuple(program.source.shapes.get(path, ()))
    # A weight that was stored `[in, out]` has turned since: the order of its sizes does not matter.
    return Weight(
        path=path,
        shape=tuple(value.shape),
        was=was,
        zeros=zeros_in(value),
        pattern=str(layout.pattern),
        packed=True,
        values=layout.values,
        bytes=program.tensor(view.weight).nbytes,
    )


def _in_blocks(program: Program, view: BlockWeight) -> Weight:
    value = unblocked_weight(program, view)
    zeros = zeros_in(value)
    path = view.codes.removesuffix(blocks("")[0])
    return Weight(
        path=path,
        shape=tuple(value.shape),
        was=tuple(program.source.shapes.get(path, ())),
        zeros=zeros,
        pattern=pattern_of(value) if zeros else "",
        packed=True,
        values=view.form.values,
        bytes=program.tensor(view.codes).nbytes + program.tensor(view.scales).nbytes,
    )


def _gone(program: Program, weights: Sequence[Weight]) -> list[Weight]:
    """Matrices of removed layers, called as one that is left in another layer, and those that were split."""
    words = {kind(path): "factors" for path in program.plan.get("factors", {})}
    words |= {kind(weight.path): weight.values for weight in weights}
    left = {weight.path for weight in weights}
    return [
        Weight(path, (), tuple(shape), 0, "", packed=False, values=words[kind(path)], bytes=0)
        for path, shape in program.source.shapes.items()
        if path not in left and kind(path) in words
    ]


def pattern_of(weight: Tensor) -> str:
    """The tightest N:M, M of 4 or 8, that the zeros of `W [..., out, in]` have; empty for none.

    Zeros that are whole columns are channels that are masked, and no pattern, however they lie.
    """
    size, live = weight.shape[-1], weight != 0
    if torch.equal(live, live.any(-2, keepdim=True).expand_as(live)):
        return ""
    for m in (m for m in _MS if size % m == 0):
        kept = live.reshape(*weight.shape[:-1], size // m, m).sum(-1).amax()
        if 0 < int(kept) < m:
            return f"{int(kept)}:{m}"
    return ""


def usual_length(program: Program) -> int:
    """Tokens to count the work at: 128, or what a smaller model takes; 0 without a length."""
    varying = {name for dims in program.dynamic.values() for name in dims.values()} - {"batch"}
    if not varying:
        return 0
    positions = admission_of_program(program).positions
    return _LENGTH if positions is None else min(_LENGTH, positions)


def _names(entries: Iterable[str | tuple[str, ...]]) -> set[str]:
    """Class names; some families have several for a task."""
    return {name for entry in entries for name in ((entry,) if isinstance(entry, str) else entry)}


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
