"""The op of fading means in ONNX: a `Scan` over the places of the sequence.

    decayed_mean(decay, bonus, keys, values, state)  ->  Scan(above, below, most; keys, values)

The body is one step of the op's formula, on tensors `[batch, channels]`; decay and bonus lie outside of it.
"""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from onnxscript import opset18

from exporters.onnx_graph.body import Body, scan
from sparsify.ir.ops.decayed_mean import NOTHING, decayed_mean

op: Any = opset18


def _decayed_mean(decay: Any, bonus: Any, keys: Any, values: Any, state: Any = None) -> Any:
    if state is None:
        above = op.Mul(op.Squeeze(op.Slice(keys, [0], [1], [1]), [1]), 0.0)
        below, most = above, above
    else:
        above, below, most = (op.Gather(state, place, axis=1) for place in range(3))
    nothing = op.CastLike(op.Constant(value_float=NOTHING), keys)
    most = op.Where(op.Equal(below, op.CastLike(0.0, keys)), nothing, most)
    begun = (above, below, most)
    found, *last = scan(_step(begun, keys, values, decay, bonus), begun, (keys, values))
    return found, op.Concat(*(op.Unsqueeze(part, [1]) for part in last), axis=1)


def _step(begun: Any, keys: Any, values: Any, decay: Any, bonus: Any) -> ir.Graph:
    """The three parts of the state, key and value of one step -> the next parts and the mean."""
    body = Body(above=begun[0], below=begun[1], most=begun[2], key=keys, value=values)
    above, below, most, key, value = body.inputs
    lifted = body("Add", key, bonus)
    scale = body("Max", most, lifted)
    old, new = body("Exp", body("Sub", most, scale)), body("Exp", body("Sub", lifted, scale))
    seen = body("Add", body("Mul", old, above), body("Mul", new, value))
    found = body("Div", seen, body("Add", body("Mul", old, below), new))
    faded = body("Sub", most, decay)
    after = body("Max", faded, key)
    old, new = body("Exp", body("Sub", faded, after)), body("Exp", body("Sub", key, after))
    above = body("Add", body("Mul", old, above), body("Mul", new, value))
    below = body("Add", body("Mul", old, below), new)
    return body.graph(above=above, below=below, most=after, found=found)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {decayed_mean: _decayed_mean}
