"""The groups of a program as rows for people."""

from dataclasses import dataclass

from sparsify.ir.axes.analysis import Analysis
from sparsify.ir.axes.groups import Group, groups


@dataclass(frozen=True)
class Row:
    """One group: what it is, where, its size, the tensors it lives in, and why it is pinned.

    `members` are spelt `path[dim]`; `consumers` are paths of the matrices that take the axis in.
    """

    kind: str
    where: str
    size: int
    members: tuple[str, ...]
    consumers: tuple[str, ...]
    pins: tuple[str, ...]


def rows(analysis: Analysis) -> list[Row]:
    """A row for every group of an analysis, in graph order."""
    return [
        Row(
            kind=group.kind,
            where=_where(group),
            size=group.size,
            members=tuple(f"{m.path}[{m.dim}]" for m in group.members),
            consumers=tuple(dict.fromkeys(c.weight for c in group.consumers)),
            pins=group.pins,
        )
        for group in groups(analysis)
    ]


def _where(group: Group) -> str:
    """The module path that all members share, or how many modules there are."""
    owners = [member.path.split(".")[:-1] for member in group.members]
    shared = []
    for parts in zip(*owners, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    if shared:
        return ".".join(shared)
    return f"{'.'.join(owners[0]) or group.members[0].path} and {len(owners) - 1} more"
