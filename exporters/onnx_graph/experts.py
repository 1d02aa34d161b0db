"""Products of experts in ONNX: rows of one expert stand together, so each expert is one plain product.

    grouped_mm(x [n, in], W [experts, in, out], ends [experts])
      ->  Concat over e of MatMul(x[ends[e - 1] : ends[e]], W[e])

An expert that no token chose multiplies no rows.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18

from sparsify.ir.ops.grouped import GROUPED

op: Any = opset18
_INT64 = 7


def _grouped(x: Any, weight: Any, ends: Any) -> Any:
    first = op.Constant(value_ints=[0])

    def multiply(expert: int, rows: Any) -> Any:
        number = op.Constant(value_ints=[expert])
        return op.MatMul(rows, op.Squeeze(op.Gather(weight, number, axis=0), first))

    return of_each(x, ends, int(weight.shape[0]), multiply)


def of_each(x: Any, ends: Any, experts: int, multiply: Callable[[int, Any], Any]) -> Any:
    """What `multiply` gives for the rows of each expert, together again.

    Those of `x [rows, in]` up to its entry of `ends [experts]`; without ends its entry of `x`, which is
    `[experts, rows, in]` then.
    """
    parts = []
    start = first = op.Constant(value_ints=[0])
    for expert in range(experts):
        number = op.Constant(value_ints=[expert])
        if ends is None:
            rows = op.Squeeze(op.Gather(x, number, axis=0), first)
            parts.append(op.Unsqueeze(multiply(expert, rows), first))
        else:
            end = op.Cast(op.Gather(ends, number, axis=0), to=_INT64)
            parts.append(multiply(expert, op.Slice(x, start, end, first)))
            start = end
    return op.Concat(*parts, axis=0)


@functools.cache
def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How torch.onnx writes the grouped products that are loaded."""
    found = {}
    for library, name, _ in (name.split(".") for name in GROUPED):
        packet = getattr(getattr(torch.ops, library), name, None)
        if packet is not None:
            found[packet.default] = _grouped
    return found
