"""The graph of a program in another floating-point type, as the model computes in that type.

A model traced in float32 has lost the casts that then did nothing. Where values of two types meet, one is
cast: tables of positions and masks, which depend on no weight, are made in float32 and cast where they
meet an activation. Where the new type is narrower, what models take in float32 stays there: means of
squares (the statistics of norms) and what they scale, probabilities, arithmetic on learned vectors alone.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor

from sparsify.errors import SparsifyError, reason_of
from sparsify.ir.program import Program
from sparsify.ir.types import infer

aten = torch.ops.aten
_NARROW = (torch.bfloat16, torch.float16)
_MEANS = (aten.mean.dim, aten.sum.dim_IntList)


class _Kind(Enum):
    """What a floating-point value comes from."""

    TABLE = "sizes, positions and masks"
    BUFFER = "buffers alone"
    MODEL = "weights or inputs"


def retyped(program: Program, dtypes: Mapping[torch.dtype, torch.dtype]) -> fx.Graph:
    """The graph for when tensors of the types `dtypes` names have become of the types it gives.

    The program stays as it is. Raises SparsifyError naming the op that does not take the new type.
    """
    values = infer(program)
    mode = next((v.fake_mode for v in values.values() if isinstance(v, FakeTensor)), nullcontext())
    parameters = {path for path, _ in program.module.named_parameters()}
    with mode, enable_python_dispatcher(), torch.no_grad():
        return _Retyping(program.graph, values, dtypes, parameters).graph


class _Retyping:
    """A copy of a graph, node by node, each typed as soon as it is made."""

    def __init__(
        self,
        old: fx.Graph,
        values: Mapping[fx.Node, Any],
        dtypes: Mapping[torch.dtype, torch.dtype],
        parameters: set[str],
    ) -> None:
        self.graph = fx.Graph()
        self._dtypes, self._parameters = dtypes, parameters
        self._old = _main_type(old, values, parameters)
        self._new = dtypes.get(self._old, self._old)
        self._made: dict[fx.Node, fx.Node] = {}
        self._values: dict[fx.Node, Any] = {}
        self._kinds: dict[fx.Node, _Kind | None] = {}
        self._casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}
        for node in old.nodes:
            if node.op in ("placeholder", "get_attr"):
                self._source(node, values[node])
            elif node.op == "output":
                self._output(node)
            else:
                self._call(node)

    def _source(self, node: fx.Node, value: Tensor) -> None:
        if value.is_floating_point():
            value = value.to(self._dtypes.get(value.dtype, self._new))
        new = self._place(node, value)
        learned = node.op == "placeholder" or str(node.target) in self._parameters
        self._kinds[new] = _Kind.MODEL if learned else _Kind.BUFFER
        self._made[node] = new

    def _call(self, node: fx.Node) -> None:
        operands = self._operands(node)
        if node.target is aten.to.dtype:
            (source,) = operands
            if self._values[operands[source]].dtype == self._constant(node.args[1]):
                self._made[node] = operands[source]
                return
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: operands[n])
        args, kwargs = fx.node.map_aggregate((args, kwargs), self._constant)
        new = self.graph.create_node("call_function", node.target, args, kwargs, name=node.name)
        new.meta.update({k: v for k, v in node.meta.items() if k != "val"})
        self._type(new)
        self._made[node] = new

    def _operands(self, node: fx.Node) -> dict[fx.Node, fx.Node]:
        """What a node reads in the new graph, cast where types meet that do not go together."""
        made = {source: self._made[source] for source in node.all_input_nodes}
        floats = {source: new for source, new in made.items() if self._is_float(new)}
        if self._new in _NARROW and (_is_statistic(node) or self._is_of_vectors(node)):
            return {**made, **{s: self._cast(n, torch.float32, node) for s, n in floats.items()}}
        types = {self._values[new].dtype for new in floats.values()}
        if len(types) < 2:
            return made
        wanted = self._meeting_type(list(floats.values()))
        return {**made, **{s: self._cast(n, wanted, node) for s, n in floats.items()}}

    def _is_of_vectors(self, node: fx.Node) -> bool:
        """Whether a node computes with nothing but learned vectors, as `1 + w` of some norms."""
        return all(
            source.op == "get_attr"
            and str(source.target) in self._parameters
            and self._values[self._made[source]].dim() == 1
            for source in node.all_input_nodes
        )

    def _meeting_type(self, operands: list[fx.Node]) -> torch.dtype:
        of_model = [n for n in operands if self._kinds[n] is _Kind.MODEL]
        narrow = [n for n in of_model if self._values[n].dtype == self._new]
        if not narrow:
            return torch.float32 if self._new in _NARROW else self._new
        # A value scaled by its own statistic: both are there in float32.
        scaled = all((n, torch.float32) in self._casts for n in narrow)
        return torch.float32 if scaled and len(of_model) > len(narrow) else self._new

    def _cast(self, node: fx.Node, dtype: torch.dtype, user: fx.Node) -> fx.Node:
        if self._values[node].dtype == dtype:
            return node
        if (node, dtype) not in self._casts:
            made = self.graph.call_function(aten.to.dtype, (node, dtype))
            made.meta["module"] = user.meta.get("module", "")
            self._type(made)
            self._casts[node, dtype] = made
        return self._casts[node, dtype]

    def _output(self, node: fx.Node) -> None:
        def read(source: fx.Node) -> fx.Node:
            new = self._made[source]
            return self._cast(new, self._new, node) if self._is_float(new) else new

        new = self.graph.output(fx.node.map_arg(node.args[0], read))
        new.meta.update({k: v for k, v in node.meta.items() if k != "val"})

    def _constant(self, value: Any) -> Any:
        """A constant of a node: the model's type, and its least and largest value, are the new one's.

        A float32 that stands in a graph of float32 was meant: casts to it that did nothing are gone.
        """
        if isinstance(value, torch.dtype):
            return self._new if value == self._old and value != torch.float32 else value
        if isinstance(value, float):
            before, after = torch.finfo(self._old), torch.finfo(self._new)
            return {before.min: after.min, before.max: after.max}.get(value, value)
        return value

    def _type(self, node: fx.Node) -> None:
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: self._values[n])
        try:
            self._values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception as error:
            name = str(self._new).removeprefix("torch.")
            raise SparsifyError(
                f"the program cannot compute in {name}: {node.target} refuses it ({reason_of(error)})"
            ) from error
        kinds = {self._kinds[source] for source in node.all_input_nodes} - {None}
        first = next((k for k in (_Kind.MODEL, _Kind.TABLE, _Kind.BUFFER) if k in kinds), None)
        kept = self._is_float(node) or isinstance(self._values[node], list | tuple)
        self._kinds[node] = (first or _Kind.TABLE) if kept else None

    def _place(self, node: fx.Node, value: Any) -> fx.Node:
        new = self.graph.node_copy(node, lambda n: self._made[n])
        new.meta = {k: v for k, v in node.meta.items() if k != "val"}
        self._values[new] = value
        return new

    def _is_float(self, node: fx.Node) -> bool:
        value = self._values[node]
        return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0


def _main_type(graph: fx.Graph, values: Mapping[fx.Node, Any], parameters: set[str]) -> torch.dtype:
    """The type of the first weight."""
    reads = [n for n in graph.nodes if n.op == "get_attr" and values[n].is_floating_point()]
    reads.sort(key=lambda node: str(node.target) not in parameters)
    return values[reads[0]].dtype if reads else torch.float32


def _is_statistic(node: fx.Node) -> bool:
    """Whether a node is what models take in float32: a square that is averaged, or probabilities."""
    if node.target is aten.softmax.int:
        return True
    square = (node.target is aten.pow.Tensor_Scalar and node.args[1] == 2) or (
        node.target is aten.mul.Tensor and node.args[0] is node.args[1]
    )
    return square and any(user.target in _MEANS for user in node.users)
