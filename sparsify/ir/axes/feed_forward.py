"""Feed-forward blocks, read off the axes: linears make channels of one value, and one linear reads them.

What it gives is as wide as what they read, the two tied by a residual sum. So the ranks of an attention's
projections are no channels of a block, nor are those of a classifier's hidden layer.
"""

from dataclasses import dataclass

from torch import fx

from sparsify.ir.axes.analysis import Analysis
from sparsify.ir.axes.groups import Group, groups
from sparsify.ir.axes.roles import LINEAR
from sparsify.ir.axes.separate_experts import separate_experts
from sparsify.ir.axes.separate_routers import separate_routers
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
    """The feed-forward blocks of a program, in graph order; those of experts are none of them.

    Raises OptionError for experts that are linears of their own and cannot be read.
    """
    views: dict[str, list[Linear]] = {}
    for view in linears(program):
        views.setdefault(view.weight, []).append(view)
    known = {path for path, _ in program.tensors()}
    experts = _of_experts(program)
    own = {
        path: found
        for path, found in views.items()
        if feature_of(path, known) is None and path not in experts
    }
    analysis = analyse(program)
    every = [
        block
        for group in groups(analysis)
        if group.kind == "channels" and (block := _block(analysis, group, own)) is not None
    ]
    places = {node: place for place, node in enumerate(program.graph.nodes)}
    return sorted(every, key=lambda block: places[block.last.node])


def _of_experts(program: Program) -> set[str]:
    """The tensors of experts that are linears of their own."""
    found = (separate_experts(program, router) for router in separate_routers(program))
    return {path for experts in found for expert in experts for path in expert.paths}


def _block(analysis: Analysis, group: Group, views: dict[str, list[Linear]]) -> FeedForward | None:
    """The block whose channels a group is: what makes them reads one value, and one linear reads them."""
    readers = {consumer.weight for consumer in group.consumers}
    makers = {member.path for member in group.members} - readers
    last = [view for path, found in views.items() if path in readers for view in found]
    first = [view for path, found in views.items() if path in makers for view in found]
    if len(last) != 1 or len({view.x for view in first}) != 1:
        return None
    entering, leaving = (analysis.axes[node][-1] for node in (first[0].x, last[0].node))
    return FeedForward(tuple(first), last[0]) if entering.root() is leaving.root() else None
