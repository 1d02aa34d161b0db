"""What stays of the axes of a program, as JSON-able values keyed by where the axes live."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsify.errors import DataError, OptionError
from sparsify.ir.axes.groups import Group, Heads, Key


@dataclass
class Keep:
    """Kept indices of axes.

    `leaves` maps an axis to its kept indices. `joint` maps the axes of KV groups and of query heads
    per group to a list: each kept KV group with its kept heads, as many in every group.
    """

    leaves: dict[Key, list[int]] = field(default_factory=dict)
    joint: dict[tuple[Key, Key], list[tuple[int, list[int]]]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.leaves or self.joint)

    def group(self, group: Group, kept: Iterable[int]) -> None:
        """Keep these indices of a group; OptionError when it is pinned or they make no sense."""
        _refuse_pins(group.kind, group.key, group.pins)
        self.leaves[group.key] = checked(kept, group.size, group.kind, group.key, group.least)

    def heads(self, heads: Heads, kept: Iterable[int]) -> None:
        """Keep these query heads.

        Raises OptionError when the heads are pinned, nothing is kept, or the kept KV groups do not
        all keep the same number of heads.
        """
        _refuse_pins("heads", heads.key[0], heads.pins)
        numbers = checked(kept, heads.size, "heads", heads.key[0])
        if heads.kv is None or heads.rep is None:
            self.leaves[heads.key[0]] = numbers
            return
        table: dict[int, list[int]] = {}
        for number in numbers:
            table.setdefault(number // heads.rep_size, []).append(number % heads.rep_size)
        counts = {len(places) for places in table.values()}
        if len(counts) > 1:
            raise OptionError(
                f"the KV groups of {heads.key[0]} would keep {sorted(counts)} query heads; "
                "every kept group must keep the same number"
            )
        self.joint[heads.kv.key, heads.rep.key] = list(table.items())


def checked(kept: Iterable[int], size: int, kind: str, key: Key, least: int = 1) -> list[int]:
    """The indices in order; OptionError when too few are left, or one is repeated or out of range."""
    given = [int(index) for index in kept]
    indices = sorted(set(given))
    if not indices:
        raise OptionError(f"all {size} {kind} at {key} would go; keep at least one")
    if len(indices) < least:
        raise OptionError(
            f"{len(indices)} of the {kind} at {key} would stay, but {least} are chosen at a time"
        )
    if len(indices) != len(given) or indices[0] < 0 or indices[-1] >= size:
        raise OptionError(f"kept {kind} at {key} must be distinct numbers from 0 to {size - 1}")
    return indices


def _refuse_pins(kind: str, key: Key, pins: tuple[str, ...]) -> None:
    if pins:
        raise OptionError(f"the {kind} at {key} cannot be pruned: {'; '.join(pins[:3])}")


def keep_to_json(keep: Keep) -> dict[str, Any]:
    """A `Keep` as JSON values."""
    return {
        "leaves": [[list(key), kept] for key, kept in keep.leaves.items()],
        "joint": [
            [list(kv), list(rep), [[group, places] for group, places in table]]
            for (kv, rep), table in keep.joint.items()
        ],
    }


def keep_from_json(data: Mapping[str, Any]) -> Keep:
    """The inverse of `keep_to_json`; DataError on anything it does not write."""
    try:
        return Keep(
            {_key(key): [int(i) for i in kept] for key, kept in data["leaves"]},
            {
                (_key(kv), _key(rep)): [(int(g), [int(p) for p in places]) for g, places in table]
                for kv, rep, table in data["joint"]
            },
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the plan of pruned axes is damaged: {error}") from error


def _key(value: Any) -> Key:
    path, dim, number = value
    return str(path), int(dim), int(number)
