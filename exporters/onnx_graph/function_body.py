"""Write the body of an ONNX function as arithmetic on values.

    rows = blocks * 8                 Mul(blocks, 8)
    fields = words // steps % 4       Mod(Div(words, steps), 4)

Constants become nodes of their own; what is written twice stands once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto, helper

BOOL, UINT8, STRING = TensorProto.BOOL, TensorProto.UINT8, TensorProto.STRING
INT32, INT64, FLOAT = TensorProto.INT32, TensorProto.INT64, TensorProto.FLOAT


@dataclass(frozen=True)
class Value:
    """A value within a body, with the type of its elements.

    Operators are elementwise and broadcast; a number takes the element type of the value beside it.
    """

    body: Body
    name: str
    type: int

    def __add__(self, other: Operand) -> Value:
        return self.body.op("Add", self, other)

    def __sub__(self, other: Operand) -> Value:
        return self.body.op("Sub", self, other)

    def __rsub__(self, other: int) -> Value:
        return self.body.op("Sub", self.body.constant(other, self.type), self)

    def __mul__(self, other: Operand) -> Value:
        return self.body.op("Mul", self, other)

    def __truediv__(self, other: Operand) -> Value:
        return self.body.op("Div", self, other)

    def __floordiv__(self, other: Operand) -> Value:
        return self.body.op("Div", self, other)

    def __rfloordiv__(self, other: int) -> Value:
        return self.body.op("Div", self.body.constant(other, self.type), self)

    def __mod__(self, other: Operand) -> Value:
        return self.body.op("Mod", self, other)

    def to(self, type: int) -> Value:
        """The same numbers as elements of another type."""
        return self.body.op("Cast", self, type=type, to=type)

    def shaped(self, *sizes: Operand) -> Value:
        """The same elements in another shape."""
        return self.body.op("Reshape", self, self.body.sizes(*sizes), allowzero=1)

    def permuted(self, *order: int) -> Value:
        """The dimensions in another order."""
        return self.body.op("Transpose", self, perm=list(order))

    def between(self, axis: int, start: Operand, end: Operand, step: Operand = 1) -> Value:
        """Every `step`-th of the elements `[start, end)` of a dimension."""
        limits = [self.body.sizes(limit) for limit in (start, end, axis, step)]
        return self.body.op("Slice", self, *limits)

    def at(self, index: Value) -> Value:
        """The elements of `self [k]` that an index names, in the shape of the index."""
        return self.body.op("Gather", self, index)


Operand = Value | int | float


class Body:
    """The nodes of one function or of a graph within it, in order.

    A graph within sees the values around it. `Value`s write to the innermost open graph.
    """

    def __init__(self) -> None:
        self._graphs: list[list[onnx.NodeProto]] = [[]]
        self._known: list[dict[tuple[object, ...], Value]] = [{}]
        self._count = 0

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes of the innermost open graph."""
        return self._graphs[-1]

    def op(self, kind: str, *inputs: Operand, type: int = 0, **attributes: Any) -> Value:
        """One node; its output has the type of the first input unless another is given."""
        first = inputs[0]
        assert isinstance(first, Value)
        values = [v if isinstance(v, Value) else self.constant(v, first.type) for v in inputs]
        return self._once(kind, [v.name for v in values], type or first.type, attributes)

    def constant(self, value: Any, type: int) -> Value:
        """A number, or a list of them as `[k]`."""
        shape, data = ([len(value)], value) if isinstance(value, list) else ([], [value])
        tensor = helper.make_tensor("constant", type, shape, data)
        return self._once("Constant", [], type, {"value": tensor})

    def attribute(self, name: str, kind: AttributeProto.AttributeType) -> Value:
        """The function's attribute of a name, an integer or a string, as `[1]`."""
        whole = kind == AttributeProto.INT
        field = "value_int" if whole else "value_string"
        reference = AttributeProto(name=field, type=kind, ref_attr_name=name)
        node = helper.make_node("Constant", [], [self._name()])
        node.attribute.append(reference)
        self.nodes.append(node)
        return Value(self, node.output[0], INT64 if whole else STRING).shaped(1)

    def sizes(self, *parts: Operand) -> Value:
        """Whole numbers and values `[1]`, one after another."""
        if not any(isinstance(part, Value) for part in parts):
            return self.constant(list(parts), INT64)
        values = [p if isinstance(p, Value) else self.sizes(p) for p in parts]
        return values[0] if len(values) == 1 else self.op("Concat", *values, axis=0)

    def scalar(self, value: Value) -> Value:
        """A value `[1]` without its dimension."""
        return self.op("Squeeze", value)

    def choose(
        self, condition: Value, then: Callable[[], list[Value]], other: Callable[[], list[Value]]
    ) -> list[Value]:
        """The values of one of two graphs."""
        graphs = {"then_branch": self._graph(then, []), "else_branch": self._graph(other, [])}
        outputs = [Value(self, self._name(), v.type) for v in graphs["then_branch"][1]]
        self.nodes.append(
            helper.make_node(
                "If",
                [condition.name],
                [v.name for v in outputs],
                **{name: graph for name, (graph, _) in graphs.items()},
            )
        )
        return outputs

    def stacked(self, count: Value, step: Callable[[Value], Value]) -> Value:
        """`step(0), step(1), ...` along a new first dimension; `count` is a scalar."""
        number, going = Value(self, self._name(), INT64), Value(self, self._name(), BOOL)
        graph, (_, item) = self._graph(
            lambda: [self.op("Identity", going), step(number)], [number, going]
        )
        output = Value(self, self._name(), item.type)
        always = self.constant(True, BOOL)
        inputs = [count.name, always.name]
        self.nodes.append(helper.make_node("Loop", inputs, [output.name], body=graph))
        return output

    def _graph(
        self, write: Callable[[], list[Value]], inputs: list[Value]
    ) -> tuple[onnx.GraphProto, list[Value]]:
        self._graphs.append([])
        self._known.append(dict(self._known[-1]))
        outputs = write()
        self._known.pop()
        nodes = self._graphs.pop()
        infos = [helper.make_tensor_value_info(v.name, v.type, []) for v in inputs]
        results = [helper.make_tensor_value_info(v.name, v.type, None) for v in outputs]
        return helper.make_graph(nodes, self._name(), infos, results), outputs

    def _once(self, kind: str, inputs: list[str], type: int, attributes: dict[str, Any]) -> Value:
        said = tuple((name, str(value)) for name, value in attributes.items())
        key = (kind, tuple(inputs), type, said)
        if key not in self._known[-1]:
            node = helper.make_node(kind, inputs, [self._name()], **attributes)
            self.nodes.append(node)
            self._known[-1][key] = Value(self, node.output[0], type)
        return self._known[-1][key]

    def _name(self) -> str:
        self._count += 1
        return f"v{self._count}"
