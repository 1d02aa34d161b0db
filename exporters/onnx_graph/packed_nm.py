"""Packed linears in ONNX: how `sparsify.nm_linear` becomes a node `sparsify.NMLinear`.

    nm_linear(x, packed, b, n, m, ...)  ->  NMLinear<n, m, ...>(X, W uint8, B)

The packed bytes are one initializer. A linear without a bias gets one of zeros, shared by all of its
size: a function has no inputs that may be missing. A model that holds such a node also holds the
function of that name, for runtimes without our kernels.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset

import sparsify.ir.ops.nm_linear  # noqa: F401 (registers the op)
from exporters.onnx_graph.nm_function import DOMAIN, INTEGERS, NAME, VERSION, function

LAYOUT = 1  # the version of docs/packed.md


@functools.cache
def _operator() -> Any:
    """What torch.onnx needs to know of the operator."""
    parameter, attribute = OpSchema.FormalParameter, OpSchema.Attribute
    optional = OpSchema.FormalParameterOption.Optional
    schema = OpSchema(
        NAME,
        DOMAIN,
        VERSION,
        inputs=[
            parameter("X", "tensor(float)"),
            parameter("W", "tensor(uint8)"),
            parameter("B", "tensor(float)", param_option=optional),
        ],
        outputs=[parameter("Y", "tensor(float)")],
        attributes=[
            *(attribute(name, OpSchema.AttrType.INT) for name in INTEGERS),
            attribute("values", OpSchema.AttrType.STRING),
        ],
    )
    return Op(Opset(DOMAIN, VERSION), NAME, schema)


def nm_node(
    x: Any,
    packed: Any,
    bias: Any,
    n: int,
    m: int,
    in_features: int,
    out_features: int,
    values: str,
    group: int,
) -> Any:
    """A packed linear as a node of our domain."""
    return _operator()(
        x,
        packed,
        bias,
        n=n,
        m=m,
        in_features=in_features,
        out_features=out_features,
        group=group,
        layout=LAYOUT,
        values=values,
    )


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.sparsify.nm_linear.default: nm_node
}


def complete(model: ir.Model, opset: int) -> None:
    """Give packed linears a bias where they have none, and the model the function they may need."""
    nodes = [node for node in model.graph.all_nodes() if node.domain == DOMAIN]
    for node in nodes:
        if len(node.inputs) == 2:
            node.resize_inputs(3)
            node.replace_input_with(2, _zeros(model, node.attributes["out_features"].as_int()))
    if nodes:
        written = ir.serde.deserialize_function(function(opset))
        model.functions[written.identifier()] = written


def _zeros(model: ir.Model, size: int) -> ir.Value:
    name = f"{DOMAIN}.no_bias.{size}"
    initializers = model.graph.initializers
    if name not in initializers:
        value = ir.val(name, const_value=ir.tensor(np.zeros(size, np.float32), name=name))
        model.graph.register_initializer(value)
    return initializers[name]
