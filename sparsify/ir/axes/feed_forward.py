"""Feed-forward blocks, read off the axes: linears make channels of one value, and one linear reads them."""

from dataclasses import dataclass

from sparsify.ir.axes.groups import Group, groups
from sparsify.ir.axes.walk import analyse
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import feature_of
from sparsify.ir.views.linear import Linear, linears


@dataclass(frozen=True)
class FeedForward:
    """A block: `first` makes channels of what enters it (others may, too), `last` its output of them."""

    first: Linear
    last: Linear


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
    return FeedForward(first[0], last[0])
