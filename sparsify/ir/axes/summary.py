"""The axes of a program as rows for people: alike ones of all layers in one row."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sparsify.ir.axes.analysis import Analysis
from sparsify.ir.axes.groups import Group, Heads, Member, groups, heads
from sparsify.ir.axes.residual import blocks

_ORDER = (
    "layers",
    "blocks",
    "heads",
    "kv",
    "channels",
    "experts",
    "hidden",
    "head_dim",
    "rotary",
    "vocabulary",
    "other",
)
# How a pin begins or ends -> what it says to someone who does not read graphs.
_WORDS = (
    (r"graph output", "an output of the model"),
    (r"input (\w+)", r"a dimension of the input \1"),
    (r"looked up by (\S+)", "entries are looked up by number"),
    (r"normalised by (\S+)", "a norm runs over it"),
    (r"averaged by (\S+)", "a mean runs over it"),
    (r"reduced by (\S+)", r"reduced by \1"),
    (r"softmax of (\S+) runs over it", "a softmax runs over it"),
    (r"(\S*softmax\S*) runs over it", "a softmax runs over it"),
    (r"op (\S+) has no axis rule", r"no rule for the op \1"),
    (r"op (\S+) has a form without a rule", r"no rule for this form of the op \1"),
)


@dataclass(frozen=True)
class AxisRow:
    """Axes of one kind and length: how many, in which layers, in which tensors, and their pins.

    `size` is spelt `8 = 4 x 2` for query heads of KV groups, empty for layers. `where` names modules up
    to their numbers, as a run: `model.layers.0-23`. `tensors` are the last names of what carries the
    axes, `pins` are in words, none for what may go.
    """

    kind: str
    size: str
    count: int
    where: tuple[str, ...]
    tensors: tuple[str, ...]
    pins: tuple[str, ...]


def rows(analysis: Analysis) -> list[AxisRow]:
    """A row for each set of axes of one kind, length and reason to stay; what may go first."""
    alike: dict[tuple[str, str, tuple[str, ...]], list[list[str]]] = {}
    for kind, size, paths, pins in _axes(analysis):
        alike.setdefault((kind, size, in_words(pins)), []).append(paths)
    found = [
        AxisRow(kind, size, len(places), _where(places), _names(places), pins)
        for (kind, size, pins), places in alike.items()
    ]
    return sorted(found, key=lambda row: (bool(row.pins), _ORDER.index(row.kind)))


def in_words(pins: Iterable[str]) -> tuple[str, ...]:
    """Pins without the names of nodes, in plain words, each once."""
    return tuple(dict.fromkeys(_say(re.sub(r" at \w+", "", pin)) for pin in pins))


def _say(pin: str) -> str:
    for pattern, words in _WORDS:
        match = re.fullmatch(pattern, pin)
        if match:
            return match.expand(words)
    return pin


def _axes(analysis: Analysis) -> Iterator[tuple[str, str, list[str], tuple[str, ...]]]:
    """Kind, size, tensors and pins of every axis; KV groups and their query heads as one."""
    for kind in ("layers", "blocks"):
        for block in blocks(analysis, kind):
            yield kind, "", list(block.weights), ()
    shown: set[object] = set()
    for site in heads(analysis):
        shown |= {part.key for part in (site.kv, site.rep) if part is not None}
        yield "heads", _heads_size(site), _paths(_members(site)), site.pins
    for group in groups(analysis):
        if group.key not in shown:
            yield group.kind, str(group.size), _paths(group.members), group.pins


def _heads_size(site: Heads) -> str:
    grouped = site.kv_size > 1 and site.rep_size > 1
    return f"{site.size} = {site.kv_size} x {site.rep_size}" if grouped else str(site.size)


def _members(site: Heads) -> tuple[Member, ...]:
    parts: list[Group | Heads] = [p for p in (site.kv, site.rep) if p is not None]
    return tuple(dict.fromkeys(member for part in parts for member in part.members))


def _paths(members: Iterable[Member]) -> list[str]:
    return list(dict.fromkeys(member.path for member in members))


def _names(places: list[list[str]]) -> tuple[str, ...]:
    """The last names of tensors, each once, `weight` and `bias` left out where a module is named."""
    paths = [re.sub(r"\.(weight|bias)$", "", path) for paths in places for path in paths]
    return tuple(dict.fromkeys(path.rpartition(".")[2] for path in paths))


def _where(places: list[list[str]]) -> tuple[str, ...]:
    """The modules that hold each place, up to the number of a layer; numbers as runs."""
    numbers: dict[str, set[int]] = {}
    for paths in places:
        owner = _shared([path.split(".") for path in paths])
        head, number = owner, None
        for i, part in enumerate(owner):
            if part.isdigit():
                head, number = owner[:i], int(part)
                break
        found = numbers.setdefault(".".join(head), set())
        if number is not None:
            found.add(number)
    return tuple(_spell(name, sorted(found)) for name, found in numbers.items())


def _shared(paths: list[list[str]]) -> list[str]:
    shared = []
    for parts in zip(*(path[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return shared


def _spell(name: str, numbers: list[int]) -> str:
    if not numbers:
        return name or "everywhere"
    first, last = numbers[0], numbers[-1]
    if first == last:
        return f"{name}.{first}"
    whole = numbers == list(range(first, last + 1))
    return f"{name}.{first}-{last}" if whole else f"{name}.{','.join(map(str, numbers))}"
