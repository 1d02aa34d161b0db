"""What follows from tokens is computed without the places of a prompt: sizes and what stands beside shrink.

    view(x, [batch, p + length, ..])  ->  view(x', [batch, length, ..])
    x [.., p + length, ..] + y        ->  x' + y[.., p:, ..]

x follows from the rows of the tokens, y does not (positions, say). Keys of attention stay as they are.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from sparsify.errors import OptionError
from sparsify.ir.graph import Writer, redirect
from sparsify.ir.program import Program

aten = torch.ops.aten
END = (1 << 63) - 1
ATTENTION = aten.scaled_dot_product_attention.default


def following(start: fx.Node) -> list[fx.Node]:
    """A node and all that follows from its values, not from its sizes alone, in graph order."""
    found, queue = {start}, [start]
    while queue:
        for user in queue.pop().users:
            if user not in found and user.op != "output" and user.target is not aten.sym_size.int:
                found.add(user)
                queue.append(user)
    return [node for node in start.graph.nodes if node in found]


@dataclass
class Shortening:
    """The rewrite, from sizes that are `whole` to sizes that are `part`, `count` less; both are nodes."""

    program: Program
    whole: fx.Node
    part: fx.Node
    count: int
    _sizes: dict[fx.Node, fx.Node] = field(default_factory=dict)
    _slices: dict[tuple[fx.Node, tuple[int, ...]], fx.Node] = field(default_factory=dict)

    def measure_apart(self, nodes: Iterable[fx.Node]) -> None:
        """Let whoever takes the whole length off these nodes take it off the inputs."""
        for node in nodes:
            for user in [u for u in node.users if u.target is aten.sym_size.int]:
                if self._is_whole(user.meta["val"]):
                    redirect(user, self.whole)

    def shorten(self, nodes: Iterable[fx.Node], inside: Container[fx.Node]) -> None:
        """Rewrite the arguments of nodes that follow from tokens; those `inside` stay as long as they are."""
        ours = set(nodes)
        for node in nodes:
            if node in inside:
                continue
            for source in list(node.all_input_nodes):
                value = source.meta["val"]
                if isinstance(value, torch.SymInt):
                    node.replace_input_with(source, self._size(source))
                elif isinstance(value, Tensor) and source not in ours:
                    is_mask = node.target is ATTENTION
                    dims = (value.dim() - 2,) if is_mask else tuple(range(value.dim()))
                    node.replace_input_with(source, self._behind(source, dims))

    def _behind(self, node: fx.Node, dims: tuple[int, ...]) -> fx.Node:
        """A value without the places of the prompt in those dimensions that have them."""
        if (node, dims) not in self._slices:
            made = self._counted(node)
            for dim in dims:
                if self._is_whole(node.meta["val"].shape[dim]):
                    made = Writer(self.program, after=made).call(
                        aten.slice.Tensor, made, dim, self.count, END
                    )
            self._slices[node, dims] = made
        return self._slices[node, dims]

    def _counted(self, node: fx.Node) -> fx.Node:
        """What numbers all tokens of a batch, say, from sizes alone, worked out from the part."""
        if not self._varies(node):
            return node
        if node.op != "call_function" or not callable(node.target):
            raise OptionError(f"{node.name} has another length than the tokens")
        args = fx.node.map_arg(node.args, self._argument)
        return Writer(self.program, after=node).call(node.target, *args, **node.kwargs)

    def _argument(self, node: fx.Node) -> fx.Node:
        is_size = isinstance(node.meta["val"], torch.SymInt)
        return self._size(node) if is_size else self._counted(node)

    def _varies(self, node: fx.Node) -> bool:
        """Whether a size of a value is worked out from the length, and is not the whole of it."""
        (length,) = self.part.meta["val"].node.expr.free_symbols
        sizes = [size for size in node.meta["val"].shape if isinstance(size, torch.SymInt)]
        return any(length in s.node.expr.free_symbols and not self._is_whole(s) for s in sizes)

    def _size(self, node: fx.Node) -> fx.Node:
        """A size that was worked out from the whole length, worked out from the part."""
        if node not in self._sizes:
            self._sizes[node] = self._worked_out(node)
        return self._sizes[node]

    def _worked_out(self, node: fx.Node) -> fx.Node:
        if self._is_whole(node.meta["val"]):
            return self.part
        if node.op != "call_function" or node.target is aten.sym_size.int:
            return node
        args = fx.node.map_arg(node.args, self._size)
        if args == node.args or not callable(node.target):
            return node
        return Writer(self.program, after=node).call(node.target, *args, **node.kwargs)

    def _is_whole(self, size: Any) -> bool:
        return isinstance(size, torch.SymInt) and size.node.expr == self.whole.meta["val"].node.expr
