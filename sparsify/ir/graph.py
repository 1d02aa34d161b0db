"""The one place that makes and erases nodes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.ir.program import Program
from sparsify.ir.types import type_node


class Writer:
    """Makes typed nodes one after the other, beginning before or after a given node."""

    def __init__(
        self, program: Program, *, before: fx.Node | None = None, after: fx.Node | None = None
    ) -> None:
        assert (before is None) != (after is None)
        self.program = program
        self._before, self._after = before, after

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A node that calls an op."""
        return self._place(lambda graph: graph.call_function(target, args, kwargs))

    def read(self, path: str) -> fx.Node:
        """A node that reads a parameter or buffer."""
        return self._place(lambda graph: graph.get_attr(path))

    def parameter(self, path: str, value: Tensor) -> fx.Node:
        """Store a trainable parameter and read it."""
        self.program.put(path, value, trainable=True)
        return self.read(path)

    def buffer(self, path: str, value: Tensor) -> fx.Node:
        """Store a buffer and read it."""
        self.program.put(path, value)
        return self.read(path)

    def _place(self, make: Callable[[fx.Graph], fx.Node]) -> fx.Node:
        graph = self.program.graph
        if self._before is not None:
            with graph.inserting_before(self._before):
                node = make(graph)
        else:
            assert self._after is not None
            with graph.inserting_after(self._after):
                node = make(graph)
            self._after = node
        node.meta["module"] = (self._before or self._after or node).meta.get("module", "")
        type_node(self.program, node)
        return node


def output_nodes(program: Program) -> list[fx.Node]:
    """The nodes whose values are the program's outputs, in order."""
    (output,) = program.graph.find_nodes(op="output")
    outputs: Any = output.args[0]
    return list(outputs)


def sources(*nodes: fx.Node) -> set[fx.Node]:
    """Every node that some nodes follow from, themselves too."""
    queue, seen = list(nodes), set(nodes)
    while queue:
        for source in queue.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                queue.append(source)
    return seen


def redirect(old: fx.Node, new: fx.Node, *, but: tuple[fx.Node, ...] = ()) -> None:
    """Let every user of `old` read `new` instead, except `new` itself and the nodes in `but`."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new and user not in but)


def sweep(program: Program) -> list[str]:
    """Erase nodes that nobody reads and forget tensors that no node reads; returns their paths."""
    for node in reversed(list(program.graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            program.graph.erase_node(node)
    read = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    orphans = [path for path, _ in program.tensors() if path not in read]
    for path in orphans:
        program.delete(path)
    _drop_empty(program.module)
    program.module.recompile()
    return orphans


def renamed(program: Program, rename: Callable[[str], str]) -> Program:
    """The program with every tensor under the path that `rename` gives for its own; tensors are shared."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    for node in graph.find_nodes(op="get_attr"):
        node.target = rename(str(node.target))
    tensors = {rename(path): value for path, value in program.tensors()}
    made = program.over(fx.GraphModule(tensors, graph))
    made.aliases = {rename(a): rename(b) for a, b in program.aliases.items()}
    return made


def _drop_empty(module: torch.nn.Module) -> None:
    for name, child in list(module.named_children()):
        _drop_empty(child)
        if not any(True for _ in child.parameters()) and not any(True for _ in child.buffers()):
            delattr(module, name)
