"""Lower a program for a runtime that only infers: fewer nodes, weights as the runtime wants them.

    dropout(x)                                    -> x
    contiguous(x)                                 -> clone(x)
    reshape(transpose(x))                         -> reshape(clone(transpose(x)))
    rsub(x, a)                                    -> neg(x) + a
    histc(numbers, n, 0, n - 1)                   -> sum over rows of (numbers == 0 .. n - 1)
    grouped_mm(x, transpose(W), ends)             -> grouped_mm(x, W', ends)
    sdpa(q, repeat(k), repeat(v))                 -> sdpa(q, k, v, enable_gqa)
    sdpa(q, k, v, mask [.., 1, keys])             -> sdpa(q, k, v, expand(mask) [.., queries, keys])
    view(addmm(b, view(x, [-1, in]), W[in, out])) -> matmul(x, W) + b
    linear(x, W[out, in], b)                      -> matmul(x, W'[in, out]) + b
    scales of blocks, float16                     -> float32

Outputs stay where they were up to rounding. The given program keeps its graph and its weights: the
lowered one is a copy of the graph that shares every tensor; W' is a transposed view of W under W's
path.
"""

from collections.abc import Callable

from torch import fx

from sparsify.ir.graph import sweep
from sparsify.ir.lower.attention import fold_repeat_kv, widen_masks
from sparsify.ir.lower.experts import lower_experts
from sparsify.ir.lower.linear import canonical_conv1d, lower_linear
from sparsify.ir.lower.small import drop_dropout, keep_copies, spell_differences, widen_scales
from sparsify.ir.mode import set_training
from sparsify.ir.program import Program
from sparsify.ir.types import propagate

STEPS: tuple[Callable[[Program], int], ...] = (
    drop_dropout,
    keep_copies,
    spell_differences,
    lower_experts,
    fold_repeat_kv,
    widen_masks,
    canonical_conv1d,
    lower_linear,
    widen_scales,
)


def lowered(program: Program) -> fx.GraphModule:
    """The program's graph for inference, with the same inputs, outputs and tensor paths."""
    copy = program.shared()
    set_training(copy.module, False)
    propagate(copy)
    for step in STEPS:
        step(copy)
    sweep(copy)
    return copy.module
