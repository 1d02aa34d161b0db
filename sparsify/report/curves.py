"""Curves of a training as vector graphics: a panel a quantity, a line a figure of the steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsify.report.html import Html, tag

Rows = Sequence[Mapping[str, Any]]
_POINTS = 300  # of a line at most; more are drawn as means of neighbours
_COLOURS = 8  # of lines, as in page.css
_WIDTH, _HEIGHT = 1000, 400  # of the drawing, which is stretched to its box


@dataclass(frozen=True)
class Panel:
    """What is drawn together: figures of a step that share a unit, or the start of their names."""

    title: str
    names: tuple[str, ...]
    prefix: str = ""

    def lines(self, rows: Rows) -> dict[str, list[tuple[int, float]]]:
        """The points of each line, by the name of its figure less the prefix; lines of no points left out."""
        if self.prefix:
            found = dict.fromkeys(n for row in rows for n in row if n.startswith(self.prefix))
            return {name.removeprefix(self.prefix): _points(name, rows) for name in found}
        lines: dict[str, list[tuple[int, float]]] = {}
        for name in self.names:
            points = _points(name, rows)
            # A task loss that is all of the loss, say, would hide the other line.
            if points and points not in lines.values():
                lines[name] = points
        return lines


_LEARNT = ("layers", "heads", "channels", "hidden")  # that masks are learnt of
PANELS = (
    Panel("loss, nats a token", ("loss", "task", "distill")),
    Panel("learning rate", ("lr",)),
    Panel("balance of experts", ("balance",)),
    Panel("omission, shares of neurons", ("omission", "coverage", "jaccard")),
    Panel("masks, share of zeros, and of weights above the last threshold", ("sparsity", "above")),
    Panel("masks, share changed", ("flips", "drift")),
    Panel("masks, number that came back", ("reactivated",)),
    Panel("mean |W| under and beside the mask", ("masked", "kept")),
    Panel("strength of the pull", ("strength",)),
    *(Panel(f"{k}: expected sparsity", (f"{k}_sparsity", f"{k}_target")) for k in _LEARNT),
    *(Panel(f"{k}: multipliers", (f"{k}_lambda", f"{k}_phi")) for k in _LEARNT),
    Panel("held-out loss of domains, nats a token", (), "validation."),
    Panel("weights of domains", (), "weight."),
)


def curves(rows: Rows) -> Html:
    """The panels of a training that have anything to show; steps that begin anew are strung together."""
    starts = [
        place for place, row in enumerate(rows) if place and row["step"] <= rows[place - 1]["step"]
    ]
    drawn = [figure for panel in PANELS if (figure := _panel(panel, rows, starts))]
    return tag("div", *drawn, class_="panels")


def _panel(panel: Panel, rows: Rows, starts: Sequence[int]) -> Html:
    lines = panel.lines(rows)
    values = [value for points in lines.values() for _, value in points]
    if not any(values):  # nothing of the kind was done
        return Html()
    marks = ticks(min(values), max(values))
    keys = [
        tag("span", name, f" {points[-1][1]:.4g}", class_=f"key c{number % _COLOURS}")
        for number, (name, points) in enumerate(lines.items())
    ]
    head = tag("figcaption", tag("b", panel.title), *keys)
    labels = [
        tag("span", f"{mark:.6g}", style=f"bottom:{100 * _part(mark, marks):.2f}%")
        for mark in marks
    ]
    drawing = _drawing(panel.title, lines, marks, len(rows), starts)
    below = tag("div", tag("span", "1"), tag("span", f"{len(rows):,} steps"), class_="x")
    return tag("figure", head, tag("div", *labels, class_="y"), drawing, below, class_="plot")


def _points(name: str, rows: Rows) -> list[tuple[int, float]]:
    return [
        (place, float(row[name])) for place, row in enumerate(rows) if row.get(name) is not None
    ]


def _drawing(
    title: str,
    lines: Mapping[str, Sequence[tuple[int, float]]],
    marks: Sequence[float],
    count: int,
    starts: Sequence[int],
) -> Html:
    def x(place: float) -> float:
        return _WIDTH * place / max(1, count - 1)

    def y(value: float) -> float:
        return _HEIGHT * (1 - _part(value, marks))

    parts = [_line("grid", [(0, y(mark)), (_WIDTH, y(mark))]) for mark in marks]
    parts += [_line("start", [(x(place), 0), (x(place), _HEIGHT)]) for place in starts]
    parts += [
        _line(f"c{number % _COLOURS}", [(x(place), y(value)) for place, value in thinned(points)])
        for number, points in enumerate(lines.values())
    ]
    ends = "; ".join(
        f"{name} {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in lines.items()
    )
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title}: {ends}",
    )


def _line(class_: str, points: Sequence[tuple[float, float]]) -> Html:
    if len(points) == 1:  # one step alone: a short dash
        (x, y) = points[0]
        points = [(x, y), (x + _WIDTH / 100, y)]
    path = "M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return tag("path", d=path, class_=class_)


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most some hundreds of points: each the mean of as many neighbours."""
    step = math.ceil(len(points) / _POINTS)
    groups = [points[place : place + step] for place in range(0, len(points), step)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers, evenly apart, from below `low` to above `high`."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * number, 12) for number in range(first, last + 1)]


def _part(value: float, marks: Sequence[float]) -> float:
    """Where a value stands between the lowest and the highest mark, from 0 to 1."""
    return (value - marks[0]) / (marks[-1] - marks[0])
