"""Dense weights in blocks in ONNX: contrib operators of ONNX Runtime, which read the bytes as they stand.

    block_linear(x, codes, scales, b)   ->  MatMulNBits(X, codes, scales, , , b)
    block_embedding(ids, codes, scales) ->  GatherBlockQuantized(codes, ids, scales), its blocks joined

Accuracy level 4: the input is rounded to int8 by block, as `sparsify.block_linear` does.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from onnx.defs import OpSchema
from onnxscript import opset18
from onnxscript.values import Op, Opset

import sparsify.ir.ops.block_linear  # noqa: F401 (registers the ops)
from sparsify.tensors.packing.layout import BITS

DOMAIN = "com.microsoft"
LINEAR = "MatMulNBits"
_INT8_INPUT = 4  # the accuracy level
op: Any = opset18


@functools.cache
def _operator(name: str, inputs: tuple[tuple[str, str], ...], integers: tuple[str, ...]) -> Any:
    """What torch.onnx needs to know of an operator: inputs by name and type, and attributes."""
    optional = OpSchema.FormalParameterOption.Optional
    schema = OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[
            OpSchema.FormalParameter(word, f"tensor({kind})", param_option=optional)
            for word, kind in inputs
        ],
        outputs=[OpSchema.FormalParameter("Y", "tensor(float)")],
        attributes=[OpSchema.Attribute(word, OpSchema.AttrType.INT) for word in integers],
    )
    return Op(Opset(DOMAIN, 1), name, schema)


def _linear(x: Any, packed: Any, scales: Any, bias: Any, *form: Any) -> Any:
    return block_node(x, packed, scales, bias, *form, outputs=int(packed.shape[0]))


def block_node(
    x: Any,
    packed: Any,
    scales: Any,
    bias: Any,
    columns: int,
    values: str,
    group: int,
    *,
    outputs: int,
) -> Any:
    """A linear in blocks as a node of ONNX Runtime's own domain."""
    inputs = (("A", "float"), ("B", "uint8"), ("scales", "float"), ("zero_points", "uint8"))
    more = (("g_idx", "int32"), ("bias", "float"))
    attributes = {
        "K": columns,
        "N": outputs,
        "bits": BITS[values],
        "block_size": group,
        "accuracy_level": _INT8_INPUT,
    }
    operator = _operator(LINEAR, inputs + more, tuple(attributes))
    return operator(x, packed, scales, None, None, bias, **attributes)


def _embedding(ids: Any, packed: Any, scales: Any, columns: int, values: str, group: int) -> Any:
    inputs = (("data", "uint8"), ("indices", "int64"), ("scales", "float"))
    attributes = {
        "bits": BITS[values],
        "block_size": group,
        "gather_axis": 0,
        "quantize_axis": 2,
    }
    operator = _operator("GatherBlockQuantized", inputs, tuple(attributes))
    last = op.Constant(value_ints=[-1])
    rows = operator(packed, ids, op.Unsqueeze(scales, last), **attributes)
    joined = op.Reshape(rows, op.Concat(op.Shape(ids), last, axis=0))
    if columns == int(packed.shape[1]) * group:
        return joined
    start, end = op.Constant(value_ints=[0]), op.Constant(value_ints=[columns])
    return op.Slice(joined, start, end, last)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.sparsify.block_linear.default: _linear,
    torch.ops.sparsify.block_embedding.default: _embedding,
}
