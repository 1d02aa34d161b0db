"""Packed matrices of experts in ONNX: one node an expert, each with bytes of its own.

    nm_experts(x, packed [experts, bytes], ends)       ->  Concat over e of NMLinear(rows of e, packed[e])
    block_experts(x, codes, scales, ends)              ->  Concat over e of MatMulNBits(rows of e, ...)

While torch.onnx writes them, a node `Expert` stands for what is one expert's; `complete` puts an
initializer `<path>.<expert>` in its place, and the stacks go.
"""

import functools
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset

from exporters.onnx_graph import packed_dense, packed_nm
from exporters.onnx_graph.experts import of_each
from exporters.onnx_graph.nm_function import DOMAIN, VERSION
from sparsify.ir.ops.packed_experts import block_experts, nm_experts
from sparsify.ir.tensor_names import of_expert

_EXPERT, _NUMBER = "Expert", "number"
_STORED = ("tensor(uint8)", "tensor(float)", "tensor(float16)")


@functools.cache
def _operator() -> Any:
    """What torch.onnx needs to know of the node that stands for one expert's part of a stack."""
    parameter = OpSchema.FormalParameter
    schema = OpSchema(
        _EXPERT,
        DOMAIN,
        VERSION,
        inputs=[parameter("stack", "T")],
        outputs=[parameter("part", "T")],
        type_constraints=[("T", _STORED, "")],
        attributes=[OpSchema.Attribute(_NUMBER, OpSchema.AttrType.INT)],
    )
    return Op(Opset(DOMAIN, VERSION), _EXPERT, schema)


def _expert(stack: Any, number: int) -> Any:
    """One expert's part of a stack `[experts, ...]`, until `complete` cuts it out."""
    return _operator()(stack, number=number)


def _nm_experts(x: Any, packed: Any, ends: Any, *form: Any) -> Any:
    return of_each(
        x,
        ends,
        int(packed.shape[0]),
        lambda e, rows: packed_nm.nm_node(rows, _expert(packed, e), None, *form),
    )


def _block_experts(x: Any, codes: Any, scales: Any, ends: Any, *form: Any) -> Any:
    outputs = int(codes.shape[1])
    return of_each(
        x,
        ends,
        int(codes.shape[0]),
        lambda e, rows: packed_dense.block_node(
            rows, _expert(codes, e), _expert(scales, e), None, *form, outputs=outputs
        ),
    )


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    nm_experts: _nm_experts,
    block_experts: _block_experts,
}


def complete(model: ir.Model) -> None:
    """Give every expert an initializer of its own."""
    initializers = model.graph.initializers
    stacks = set()
    for node in list(model.graph.all_nodes()):
        if (node.domain, node.op_type) != (DOMAIN, _EXPERT):
            continue
        stack = node.inputs[0]
        assert stack is not None
        assert stack.name is not None
        assert stack.const_value is not None
        number = node.attributes.get_int(_NUMBER)
        name = of_expert(stack.name, number)
        if name not in initializers:
            part = ir.tensor(stack.const_value.numpy()[number], name=name)
            model.graph.register_initializer(ir.val(name, const_value=part))
        node.outputs[0].replace_all_uses_with(initializers[name])
        node.graph.remove(node, safe=True)  # type: ignore[union-attr]
        stacks.add(stack.name)
    for name in stacks:
        del initializers[name]
