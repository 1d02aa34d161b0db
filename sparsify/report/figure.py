"""The picture of a comparison: one row of bars a variant, one panel a measure."""

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sparsify.disk.files import new_file
from sparsify.errors import DataError

# Colour of the first variant (what the others are compared with), of the others, and of notes.
BASE, OTHER, NOTE = "#8a93a3", "#2f6fb0", "#5b6472"
_LABEL_WIDTH = 22


@dataclass(frozen=True)
class Panel:
    """One measure: its key in a row, its title, and how a value is written."""

    key: str
    title: str
    write: Callable[[float], str]


def short(value: float) -> str:
    """A count with three digits and a unit: `1.23 M`, `45.6 k`, `789`."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


PANELS = (
    Panel("perplexity", "perplexity\n(less is better)", lambda v: f"{v:.4g}"),
    Panel("parameters", "parameters\n(tied ones once)", short),
    Panel("bytes", "bytes\n(as stored)", lambda v: short(v) + "B"),
    Panel("ratio", "speed against the first\n(more is faster)", lambda v: f"{v:.2f} x"),
)


def bars(rows: Sequence[Mapping[str, Any]], path: Path, title: str = "dense and sparse") -> Path:
    """Draw variants side by side into one PNG file and return its path.

    A row has `name` and any of `perplexity`, `parameters`, `bytes`, `ratio` (with `ratio_low` and
    `ratio_high` as its spread); the first row is what the others are compared with. A measure that
    no row has gets no panel. Raises DataError when there is nothing to draw.
    """
    return save(bars_figure(rows, title), path)


def bars_figure(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """The figure that `bars` writes."""
    panels = [panel for panel in PANELS if any(row.get(panel.key) is not None for row in rows)]
    if not panels:
        raise DataError("there is nothing to draw: no variant has a measure")
    figure = new_figure(2.6 + 2.7 * len(panels), 1.5 + 0.5 * len(rows))
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        _panel(axis, panel, rows)
    names = [textwrap.fill(str(row["name"]), _LABEL_WIDTH) for row in rows]
    axes[0].set_yticks(range(len(rows)), names)
    axes[0].invert_yaxis()
    return figure


def longest_bar(ends: Sequence[tuple[float, float]]) -> float:
    """How far the scale of bars goes, given each bar and the end of its spread, in the bars' unit.

    Far enough for every spread but those that would shrink all bars: these end at one and a half times the
    longest bar.
    """
    return min(max(high for _, high in ends), 1.5 * max(value for value, _ in ends))


def _panel(axis: Axes, panel: Panel, rows: Sequence[Mapping[str, Any]]) -> None:
    measured = [row for row in rows if row.get(panel.key) is not None]
    ends = [(row[panel.key], row.get(f"{panel.key}_high") or row[panel.key]) for row in measured]
    largest = longest_bar(ends)
    for place, row in enumerate(rows):
        value = row.get(panel.key)
        if value is None:
            axis.text(0, place, " not measured", va="center", fontsize=9, color=NOTE)
            continue
        axis.barh(place, value, height=0.6, color=BASE if place == 0 else OTHER)
        low, high = row.get(f"{panel.key}_low"), row.get(f"{panel.key}_high")
        end = float(value)
        if low is not None and high is not None:
            high = min(float(high), largest)
            axis.plot([min(low, high), high], [place, place], color="#1b1f24", linewidth=1.4)
            end = max(end, high)
        note(axis, end, place, panel.write(value))
    axis.set_title(panel.title, fontsize=10)
    # Room on the right for the longest number.
    axis.set_xlim(0, largest * 1.45 or 1)
    axis.set_xticks([])
    axis.tick_params(left=False)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
    if panel.key == "ratio":
        axis.axvline(1, color=NOTE, linewidth=0.8, linestyle="--")


def note(axis: Axes, end: float, place: int, text: str) -> None:
    """Write a number behind the end of a bar, over whatever line passes there."""
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    axis.annotate(
        text, (end, place), (6, 0), textcoords="offset points", va="center", fontsize=9, bbox=paper
    )


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches that keeps its labels apart; it belongs to no window."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file, without date or version."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def save(figure: Figure, path: Path) -> Path:
    """Write the figure through a temporary name."""
    with new_file(path) as temporary:
        temporary.write_bytes(png(figure))
    return path
