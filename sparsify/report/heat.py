"""The heat map of a model: a row a layer, a column a kind of linear map, a colour for what is gone."""

import math
from collections import Counter
from collections.abc import Sequence

from sparsify.describe.facts import Share, Weight
from sparsify.report.grid import Stack, grouped, stacks
from sparsify.report.html import Html, join, percent, table, tag, wide

# Shares from which on text of the other brightness is read better (4.5:1 at least): on a dark page, on any.
_MIDDLE, _STRONG = 0.57, 0.65


def heat_maps(weights: Sequence[Weight]) -> Html:
    """A map for every stack of layers, what its colours and words mean, and a table of other weights."""
    found, outside = stacks(weights)
    plain = Counter(_stored(weight) for weight in weights if weight.shape and not weight.packed)
    usual = max(plain, key=plain.__getitem__, default="")
    parts = [_map(stack, usual) for stack in found]
    if found:
        parts.insert(0, _legend(usual))
    if outside:
        parts += [tag("h3", "Outside the layers" if found else "Weights"), _outside(outside)]
    return join(parts)


def _map(stack: Stack, usual: str) -> Html:
    groups = grouped(stack.kinds)
    upper = [
        tag("th", group, colspan=len(leaves), scope="colgroup", class_="group")
        for group, leaves in groups
    ]
    lower = [
        tag("th", leaf or "weight", scope="col", class_=None if place else "first")
        for _, leaves in groups
        for place, leaf in enumerate(leaves)
    ]
    corner = tag("th", "layer", rowspan=2, scope="col", class_="corner")
    last = tag("th", "all", rowspan=2, scope="col", class_="all")
    head = tag("thead", tag("tr", corner, *upper, last), tag("tr", *lower))
    body = tag("tbody", *(_row(stack, str(layer), [layer], usual) for layer in stack.layers))
    foot = tag("tfoot", _row(stack, "all", stack.layers, None))
    name = tag("caption", tag("code", stack.name or "numbered modules"))
    # Columns of one width, below which the map scrolls.
    width = f"min-width:{3.2 + 5.4 * (len(stack.kinds) + 1):.1f}rem"
    return wide(tag("table", name, head, body, foot, class_="heat", style=width))


def _row(stack: Stack, title: str, layers: Sequence[int], usual: str | None) -> Html:
    """A layer, or all of them; the words of one cell are not repeated for sums (`usual` None)."""
    found = [
        [weight for layer in layers for weight in stack.cells.get((layer, kind), [])]
        for kind in stack.kinds
    ]
    every = [weight for cell in found for weight in cell]
    cells = [_cell(cell, usual) for cell in found]
    return tag("tr", tag("th", title, scope="row"), *cells, _cell(every, None, "all"))


def _cell(weights: Sequence[Weight], usual: str | None, class_: str = "") -> Html:
    """Zeros among what is left, what was removed, N:M and bits; the colour is what is gone of all."""
    if not weights:
        return tag("td", class_=f"empty {class_}".strip())
    share = Share.of(weights)
    number = percent(share.zero) if share.left else "removed"
    notes = [f"\u2212{percent(share.removed)}"] if share.removed and share.left else []
    if usual is not None:
        notes += sorted({note for weight in weights if (note := _note(weight, usual))})
    colour = "strong" if share.gone >= _STRONG else "middle" if share.gone >= _MIDDLE else ""
    colour = colour if share.left else "removed"
    return tag(
        "td",
        tag("span", number, class_=None if share.zeros or not share.left else "nothing"),
        tag("small", " ".join(notes)) if notes else None,
        class_=" ".join(filter(None, ("cell", colour, class_))),
        style=f"--gone:{100 * share.gone:.1f}%;--removed:{100 * share.removed:.1f}%",
        title=_words(weights, share),
    )


def _note(weight: Weight, usual: str) -> str:
    """N:M and what is stored, where it is not what most plain weights are stored as."""
    stored = _stored(weight) if weight.shape else ""
    if not weight.packed and stored == usual:
        stored = ""
    return " ".join(filter(None, (weight.pattern, stored)))


def _stored(weight: Weight) -> str:
    """What a value is stored as, in short: `fp32`, `bf16`, `int8`."""
    return weight.values.replace("bfloat", "bf").replace("float", "fp")


def _words(weights: Sequence[Weight], share: Share) -> str:
    """Everything about a cell as lines of text."""
    lines = [_line(weight) for weight in weights[:4]]
    if len(weights) > 4:
        lines.append(f"and {len(weights) - 4} more")
    lines.append(f"{share.zeros:,} of {share.left:,} are zero; there were {share.was:,}")
    return "\n".join(lines)


def _line(weight: Weight) -> str:
    if not weight.shape:
        return f"{weight.path} {list(weight.was)}: removed"
    was = (
        f" of {list(weight.was)}" if weight.was and _area(weight.was) != _area(weight.shape) else ""
    )
    packed = f"packed {weight.pattern} " if weight.packed else ""
    return (
        f"{weight.path} {list(weight.shape)}{was}: {packed}{weight.values}, {weight.bytes:,} bytes"
    )


def _area(shape: Sequence[int]) -> int:
    return math.prod(shape)


def _outside(weights: Sequence[Weight]) -> Html:
    header = ("weight", "shape", "zeros", "removed", "stored")
    rows = []
    for weight in weights:
        share = Share.of([weight])
        stored = " ".join(filter(None, ("packed" if weight.packed else "", _note(weight, ""))))
        shape = " \u00d7 ".join(map(str, weight.shape)) or "removed"
        name = tag("code", weight.path.removesuffix(".weight"))
        rows.append((name, shape, percent(share.zero), percent(share.removed), stored))
    return table(header, rows, words=(1, 4))


def _legend(usual: str) -> Html:
    stored = f" Weights without such a word are stored as {usual}." if usual else ""
    return tag(
        "div",
        tag("span", "0 %", tag("i", class_="scale"), "100 %", class_="key"),
        tag(
            "p",
            "The colour is the share of the traced weights that is gone, as zeros or removed; ",
            tag("i", class_="swatch"),
            " along the lower edge, the part that was removed. In a cell: the zeros among what is "
            f"left, then what was removed (\u2212), then N:M and the bits of a value.{stored}",
        ),
        class_="legend",
    )
