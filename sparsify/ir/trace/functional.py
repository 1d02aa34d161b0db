"""Make an exported graph functional: every write becomes a new value, also through views.

A tensor and its views are a family that shares memory. `op_(v)` on a member becomes `w = op(v)`; the write
then climbs to the tensor that owns the memory, `p' = scatter(p, w)` at each view, and members that are read
afterwards are taken anew from it. What nobody reads is swept away later, so that `x.add_(y)` on a tensor
without views is just `x.add(y)`. Who shares memory with whom is asked of the values the export left.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher

from sparsify.ir.trace.scattering import NotFollowed, joined, same_shape, scattered, sizes_of

aten = torch.ops.aten
# It shares memory with what tracing lifted by the values of the export; a model makes it anew each time.
_FRESH = aten.lift_fresh_copy.default
_SAME = {aten.detach_.default, aten.requires_grad_.default}
_OVERWRITES = {aten.copy_.default, aten.fill_.Scalar, aten.fill_.Tensor, aten.zero_.default}
_RESIZES = {"resize_", "resize_as_", "set_", "set_data", "swap_"}


@dataclass(frozen=True)
class Offence:
    """Why a graph is no program: what it does, and the path of the module that has to do with it."""

    what: str
    module: str


def functionalise(module: fx.GraphModule) -> list[Offence]:
    """Rewrite every write of a graph into functional ops; what cannot be so rewritten comes back.

    A write into the model's own tensors is an offence, but for one that overwrites the whole of a tensor
    before anybody has read it: then nothing is kept from run to run. One into an input is seen by the graph
    alone.
    """
    if not any(is_mutable(node) for node in module.graph.nodes):
        return []
    return _Functional(module.graph).run()


def is_mutable(node: fx.Node) -> bool:
    """Whether a node writes into one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def module_of(node: fx.Node) -> str:
    """The path of the innermost module whose code made a node."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


class _Functional:
    """One walk over a graph. A handle is a node of the old graph: a tensor as the model's code holds it."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.names: dict[fx.Node, fx.Node] = {}  # a node -> the handle that it means from here on
        self.parent: dict[fx.Node, fx.Node] = {}  # a view -> the handle it looks at
        self.read: dict[fx.Node, fx.Node] = {}  # a view -> the node it reads for that handle
        # A handle -> its value, and after how many writes it was that.
        self.held: dict[fx.Node, tuple[fx.Node, int]] = {}
        self.writes: dict[fx.Node, int] = {}  # an owner of memory -> the writes into it so far
        self.known: set[str] = set()  # own tensors whose values were read as they were before
        self.gone: list[fx.Node] = []
        self.offences: list[Offence] = []
        self.here: fx.Node

    def run(self) -> list[Offence]:
        """Rewrite the graph; what could not be."""
        for node in list(self.graph.nodes):
            self.here = node
            handles = {n: self._handle(n) for n in node.all_input_nodes}
            values = {n: self._value(handle) for n, handle in handles.items()}
            self._note_reads(node, handles)
            if is_mutable(node):
                self._write(node, handles, values)
                continue
            if node.op == "call_function" and node.target is not _FRESH:
                source = next((n for n in handles if _shares_memory(node, n)), None)
                if source is not None:
                    self._look(node, handles[source], values[source])
            _read_from(node, values)
        for node in reversed(self.gone):
            self.graph.erase_node(node)
        return self.offences

    def _note_reads(self, node: fx.Node, handles: dict[fx.Node, fx.Node]) -> None:
        """Note the own tensors that a node reads; what it overwrites as a whole it does not read."""
        overwritten = node.args[0] if node.target in _OVERWRITES else None
        for given, handle in handles.items():
            owner = self._owner(handle)
            read = given is not overwritten or handle is not owner
            if read and owner.op == "get_attr" and owner not in self.writes:
                self.known.add(str(owner.target))

    def _overwrites(self, node: fx.Node, owner: fx.Node, handle: fx.Node) -> bool:
        """Whether a write gives an own tensor all of its values, that nobody has read before or elsewhere."""
        path = str(owner.target)
        holders = [n for n in self.graph.nodes if n.op == "get_attr" and str(n.target) == path]
        whole = node.target in _OVERWRITES and handle is owner
        return whole and path not in self.known and len(holders) == 1

    def _handle(self, node: fx.Node) -> fx.Node:
        while node in self.names:
            node = self.names[node]
        return node

    def _owner(self, handle: fx.Node) -> fx.Node:
        while handle in self.parent:
            handle = self.parent[handle]
        return handle

    def _value(self, handle: fx.Node) -> fx.Node:
        """The node that holds what a handle is worth here; a view of written memory is taken anew."""
        now = self.writes.get(self._owner(handle), 0)
        value, taken = self.held.get(handle, (handle, 0))
        if taken == now:
            return value
        source, read = self._value(self.parent[handle]), self.read[handle]
        with self.graph.inserting_before(self.here):
            value = self.graph.node_copy(handle, lambda n: source if n is read else n)
        self.held[handle] = (value, now)
        return value

    def _look(self, node: fx.Node, handle: fx.Node, value: fx.Node) -> None:
        """Note that a node is a view; one result of several that are no views owns its memory."""
        if isinstance(handle.meta["val"], Tensor) or handle in self.parent:
            self.parent[node], self.read[node] = handle, value
            self.held[node] = (node, self.writes.get(self._owner(handle), 0))

    def _write(
        self, node: fx.Node, handles: dict[fx.Node, fx.Node], values: dict[fx.Node, fx.Node]
    ) -> None:
        """Rewrite one node that writes, or note why it cannot be."""
        try:
            target = _written(node)
            handle = handles[target]
            if node.target in _SAME:
                self.names[node] = handle
                self.gone.append(node)
            elif torch.Tag.inplace_view in node.target.tags:  # type: ignore[union-attr]
                # From here on the name of the tensor means its view.
                node.target = _functional(node)
                self._look(node, handle, values[target])
                self.names[target] = self.names[handle] = node
                _read_from(node, values)
            else:
                self._store(node, handle, values[target], values)
                self.names[node] = handle
        except NotFollowed as error:
            self.offences.append(Offence(str(error), module_of(node)))
            _read_from(node, values)

    def _store(
        self, node: fx.Node, handle: fx.Node, old: fx.Node, values: dict[fx.Node, fx.Node]
    ) -> None:
        what, owner = str(node.target), self._owner(handle)
        kept = owner.op == "get_attr" and not self._overwrites(node, owner, handle)
        with self.graph.inserting_before(node.next):
            self._climb(handle, self._stored(node, handle.meta["val"], old, values))
        if kept:
            path = str(owner.target)
            self.offences.append(
                Offence(f"writes into its own tensor '{path}' ({what})", path.rpartition(".")[0])
            )

    def _stored(
        self, node: fx.Node, like: Tensor, old: fx.Node, values: dict[fx.Node, fx.Node]
    ) -> fx.Node:
        """The value that a node writes, in the type and shape of what it writes into."""
        if node.target in (aten.zero_.default, aten.fill_.Scalar):
            self.gone.append(node)
            number = 0 if node.target is aten.zero_.default else node.args[1]
            return self._call(like, aten.full_like.default, old, number)
        if node.target is aten.copy_.default and isinstance(node.args[1], fx.Node):
            self.gone.append(node)
            return self._fitted(values[node.args[1]], old, like)
        functional = _functional(node)
        _read_from(node, values)
        node.kwargs = {k: v for k, v in node.kwargs.items() if k in _arguments(functional)}
        node.target = functional
        dtype = _result_type(node, like)
        return node if dtype == like.dtype else self._call(like, aten.to.dtype, node, like.dtype)

    def _fitted(self, source: fx.Node, old: fx.Node, like: Tensor) -> fx.Node:
        """What `copy_` writes: the source in the type and shape of its target."""
        value = source.meta["val"]
        if value.device != like.device:
            raise NotFollowed(f"copies from {value.device} to {like.device}")
        if value.dtype != like.dtype:
            source = self._call(value.to(like.dtype), aten.to.dtype, source, like.dtype)
        if not same_shape(value, like):
            sizes = sizes_of(self.graph, old, like)
            source = self._call(like, aten.expand.default, source, sizes)
        return source

    def _climb(self, handle: fx.Node, new: fx.Node) -> None:
        """Give a handle a value, and every handle that it is a view of."""
        found = [(handle, new)]
        while handle in self.parent:
            view, handle = handle, self.parent[handle]
            if isinstance(handle.meta["val"], Tensor):
                new = scattered(self.graph, view, self._value(handle), handle.meta["val"], new)
            else:  # the view is one piece of several
                pieces, handle = handle, self.parent[handle]
                new = joined(self.graph, self._value(pieces), pieces, int(view.args[1]), new)  # type: ignore[arg-type]
            new.meta = {**self.here.meta, "val": handle.meta["val"]}
            found.append((handle, new))
        self.writes[handle] = self.writes.get(handle, 0) + 1
        self.held.update({member: (value, self.writes[handle]) for member, value in found})

    def _call(self, value: Tensor, target: Any, *args: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        node.meta = {**self.here.meta, "val": value}
        return node


def _read_from(node: fx.Node, values: dict[fx.Node, fx.Node]) -> None:
    """Let a node read the values of its arguments."""
    if any(n is not value for n, value in values.items()):
        node.args = fx.node.map_arg(node.args, lambda n: values.get(n, n))
        node.kwargs = fx.node.map_arg(node.kwargs, lambda n: values.get(n, n))


def _shares_memory(node: fx.Node, other: fx.Node) -> bool:
    return bool(_storages(node) & _storages(other))


def _storages(node: fx.Node) -> set[int]:
    value = node.meta.get("val")
    tensors = value if isinstance(value, list | tuple) else [value]
    return {t.untyped_storage()._cdata for t in tensors if isinstance(t, Tensor)}


def _written(node: fx.Node) -> fx.Node:
    """The one argument that a node writes into."""
    found = list(_written_arguments(node))
    if len(found) != 1 or not isinstance(found[0], fx.Node):
        raise NotFollowed(f"writes into several tensors at once ({node.target})")
    return found[0]


def _written_arguments(node: fx.Node) -> Iterator[Any]:
    schema = node.target._schema  # type: ignore[union-attr]
    for index, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            if given is not None:
                yield given


def _functional(node: fx.Node) -> Any:
    """The op that computes what a node writes."""
    target: Any = node.target
    name = str(target.overloadpacket.__name__)
    if target.namespace == "aten" and name not in _RESIZES:
        if name.endswith("_"):
            # `add_` writes what `add` gives, `__iand__` what `__and__` does.
            name = f"__{name[3:]}" if name.startswith("__i") else name.removesuffix("_")
        packet = getattr(aten, name, None)
        wanted = [n for n in _arguments(target) if n not in _outs(target)]
        for overload in packet.overloads() if packet is not None else ():
            found = getattr(packet, overload)
            # What is written to may have another name, `self` for `input`.
            alike = len(_arguments(found)) == len(wanted) and _arguments(found)[1:] == wanted[1:]
            if alike and not found._schema.is_mutable:
                same = overload in (target._overloadname, target._overloadname.removesuffix("_out"))
                if same or _outs(target):
                    return found
    raise NotFollowed(f"writes by {target}, which has no form that only computes")


def _arguments(target: Any) -> list[str]:
    return [argument.name for argument in target._schema.arguments]


def _outs(target: Any) -> list[str]:
    return [argument.name for argument in target._schema.arguments if argument.is_out]


def _result_type(node: fx.Node, like: Tensor) -> torch.dtype:
    """The type of what a functional op gives; in place it would be that of its first argument."""
    inputs = [n.meta.get("val") for n in node.all_input_nodes]
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    if like.dtype.is_floating_point and all(value.dtype == like.dtype for value in tensors):
        return like.dtype
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: n.meta["val"])
    with like.fake_mode, enable_python_dispatcher(), torch.no_grad():  # type: ignore[attr-defined]
        result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return result.dtype
