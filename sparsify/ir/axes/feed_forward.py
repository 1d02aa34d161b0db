"""Feed-forward blocks, read off the axes: linears make channels of one value, and one linear reads them."""

from dataclasses import dataclass

from torch import fx

from sparsify.ir.axes.groups import Group, groups
from sparsify.ir.axes.roles import LINEAR
from sparsify.ir.axes.walk import analyse
from sparsify.ir.graph import sources
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import feature_of
from sparsify.ir.views.linear import Linear, linears


@dataclass(frozen=True)
class FeedForward:
    """A block: `makers` make channels of what enters it, `last` its output of them."""

    makers: tuple[Linear, ...]
    last: Linear

    @property
    def first(self) -> Linear:
        """The first of those that make channels."""
        return self.makers[0]

    @property
    def up(self) -> Linear:
        """What makes the channels that a gate multiplies, where there is one; else the first.

        Of several makers it is the one from which `last` is reached without an activation.
        """
        nodes = {view.node: view for view in self.makers}
        straight, through = set[fx.Node](), set[fx.Node]()
        queue, seen = [self.last.x], {self.last.x}
        while queue:
            node = queue.pop()
            if node in nodes:
                straight.add(node)
            elif node.target in LINEAR:
                queue += [source for source in node.all_input_nodes if source not in seen]
                seen.update(node.all_input_nodes)
            else:
                through |= sources(node)
        plain = [view for node, view in nodes.items() if node in straight - through]
        return plain[0] if plain else self.first


def feed_forwards(program: Program) -> list[FeedForward]:
    """The feed-forward blocks of a program, in graph order; those of experts are none of them."""
    views: dict[str, list[Linear]] = {}
    for view in linears(program):
        views.setdefault(view.weight, []).append(view)
    known = {path for path, _ in program.tensors()}
    own = {path: found for path, found in views.items() if feature_of(path, known) is None}
    every = [
        block
        for group in groups(analyse(program))
        if group.kind == "channels" and (block := _block(group, own)) is not None
    ]
    places = {node: place for place, node in enumerate(program.graph.nodes)}
    return sorted(every, key=lambda block: places[block.last.node])


def _block(group: Group, views: dict[str, list[Linear]]) -> FeedForward | None:
    """The block whose channels a group is: what makes them reads one value, and one linear reads them."""
    readers = {consumer.weight for consumer in group.consumers}
    makers = {member.path for member in group.members} - readers
    last = [view for path, found in views.items() if path in readers for view in found]
    first = [view for path, found in views.items() if path in makers for view in found]
    if len(last) != 1 or len({view.x for view in first}) != 1:
        return None
    return FeedForward(tuple(first), last[0])
