"""The op of recurrences in ONNX: a `Scan` over the places of the sequence, which all runtimes know.

    state_scan(decay, values, keys, queries, rate, state)  ->  Scan(state; decay, values, keys, queries, rate)

The body is one step of the op's formula, on tensors without their second axis.
"""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from onnxscript import opset18

from exporters.onnx_graph.body import Body, scan
from sparsify.ir.ops.state_scan import state_scan

op: Any = opset18


def _state_scan(
    decay: Any, values: Any, keys: Any, queries: Any, rate: Any = None, state: Any = None
) -> Any:
    if state is None:
        state = _zeros(values, keys)
    given = [decay, values, keys, queries, *(() if rate is None else (rate,))]
    found, last = scan(_step(state, given), [state], given)
    return found, last


def _zeros(values: Any, keys: Any) -> Any:
    """A state `[batch, heads, rows, columns]` of zeros."""
    batch = op.Shape(values, start=0, end=1)
    shape = op.Concat(batch, op.Shape(values, start=2), op.Shape(keys, start=3), axis=0)
    return op.Expand(op.CastLike(op.Constant(value_float=0.0), values), shape)


def _step(state: Any, given: list[Any]) -> ir.Graph:
    """The state and what was given of one step -> the next state and what is read of it."""
    names = ("state", "decay", "value", "key", "query", "rate")
    body = Body(**dict(zip(names, (state, *given), strict=False)))
    before, decay, value, key, query, *rate = body.inputs
    decayed = body("Mul", decay, before)
    row, column = body("Unsqueeze", key, body.axes(-2)), body("Unsqueeze", key, body.axes(-1))
    update = body("Unsqueeze", value, body.axes(-1))
    if rate:
        update = body("Sub", update, body("MatMul", decayed, column))
        update = body("Mul", update, body("Unsqueeze", rate[0], body.axes(-1, -2)))
    after = body("Add", decayed, body("Mul", update, row))
    read = body("MatMul", after, body("Unsqueeze", query, body.axes(-1)))
    return body.graph(state=after, found=body("Squeeze", read, body.axes(-1)))


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {state_scan: _state_scan}
