"""Graphs inside a node of ONNX, and the `Scan` that runs one along a sequence."""

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnxscript import opset18

op: Any = opset18


class Body:
    """Nodes of a graph inside a node, in their order; `inputs` are typed as the values they stand for."""

    def __init__(self, **like: ir.Value) -> None:
        self.inputs = [
            ir.Value(name=f"step_{name}", type=x.type, shape=None) for name, x in like.items()
        ]
        self.nodes: list[ir.Node] = []

    def __call__(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """The output of a node of that kind."""
        self.nodes.append(ir.node(kind, inputs, attributes))
        return self.nodes[-1].outputs[0]

    def axes(self, *numbers: int) -> ir.Value:
        """Numbers of axes, as a node that gives them."""
        return self("Constant", value_ints=numbers)

    def graph(self, **outputs: ir.Value) -> ir.Graph:
        """The graph that gives these, of the type of the first input."""
        for name, output in outputs.items():
            output.name, output.type = f"{name}_after", self.inputs[0].type
        return ir.Graph(self.inputs, [*outputs.values()], nodes=self.nodes, name="step")


def scan(step: ir.Graph, states: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    """What a body that is run along the second axis of `given` finds at each step, and the last states."""
    along = [1] * len(given)
    first = op.Scan(
        *states,
        *given,
        body=step,
        num_scan_inputs=len(given),
        scan_input_axes=along,
        scan_output_axes=[1],
    )
    node = first.producer()
    node.resize_outputs(len(states) + 1)  # onnxscript counts one, where the body has as many
    *last, found = node.outputs
    return [found, *last]
