"""The plots of a run's page: the loss over steps, the parameters after each pass, the speed."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from sparsify.measure.figure import BASE, NOTE, OTHER, new_figure, note, short

Rows = Sequence[Mapping[str, Any]]
_COLOURS = (OTHER, "#c8553d", "#3f8f5f", "#8a5fb0", "#b08a2f")


def loss_plot(runs: Mapping[str, Rows]) -> Figure:
    """The loss over steps, one line a training; a row has `step` and `loss`."""
    figure = new_figure(7.2, 3.2)
    axis = figure.subplots()
    for place, (name, rows) in enumerate(runs.items()):
        steps = [row["step"] for row in rows if row.get("loss") is not None]
        losses = [row["loss"] for row in rows if row.get("loss") is not None]
        colour = _COLOURS[place % len(_COLOURS)]
        axis.plot(steps, losses, color=colour, linewidth=1.2, label=name)
    axis.set_xlabel("step")
    axis.set_ylabel("loss (nats a token)")
    if len(runs) > 1:
        axis.legend(frameon=False)
    _open(axis)
    return figure


def masks_plot(rows: Rows) -> Figure:
    """Moving masks: shares changed since the last choice and since the first, and mean |W| on both sides.

    Rows with `flips` have `step`, `drift`, `masked` and `kept` too; others are passed over.
    """
    rows = [row for row in rows if row.get("flips") is not None]
    steps = [row["step"] for row in rows]
    figure = new_figure(7.2, 3.0)
    shares, sizes = figure.subplots(1, 2)
    for axis, names, label in (
        (shares, ("flips", "drift"), "share of the mask"),
        (sizes, ("masked", "kept"), "mean |W|"),
    ):
        for place, name in enumerate(names):
            axis.plot(
                steps, [row[name] for row in rows], color=_COLOURS[place], linewidth=1.2, label=name
            )
        axis.set_xlabel("step")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
        _open(axis)
    return figure


def passes_plot(rows: Rows) -> Figure:
    """Parameters after each pass, the zeros among them in grey; a row has `name` and both."""
    figure = new_figure(7.2, 0.9 + 0.34 * len(rows))
    axis = figure.subplots()
    places = range(len(rows))
    parameters = [int(row["parameters"]) for row in rows]
    zeros = [
        min(int(row.get("zeros") or 0), whole) for row, whole in zip(rows, parameters, strict=True)
    ]
    kept = [whole - zero for whole, zero in zip(parameters, zeros, strict=True)]
    axis.barh(places, kept, height=0.66, color=OTHER, label="not zero")
    axis.barh(places, zeros, left=kept, height=0.66, color="#cfd5dd", label="zero")
    for place, whole, zero in zip(places, parameters, zeros, strict=True):
        note(axis, whole, place, short(whole) + (f", {short(zero)} zero" if zero else ""))
    names = [f"{place + 1}  {row['name']}" for place, row in enumerate(rows)]
    axis.set_yticks(places, names, fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, max(parameters, default=0) * 1.35 or 1)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_xlabel("parameters after the pass")
    _open(axis)
    return figure


def speed_plot(timings: Rows) -> Figure:
    """Speed against the baseline with its 10-90 % spread; grey where nothing is won."""
    labels = [speed_label(row) for row in timings]
    figure = new_figure(7.2, 1.0 + 0.42 * len(timings))
    axis = figure.subplots()
    for place, row in enumerate(timings):
        ratio, low, high = (float(row[key]) for key in ("ratio", "ratio_low", "ratio_high"))
        axis.barh(place, ratio, height=0.6, color=BASE if ratio <= 1 else OTHER)
        axis.plot([low, high], [place, place], color="#1b1f24", linewidth=1.4)
        words = f"{ratio:.2f} x, {float(row['median_ms']):.3g} ms"
        note(axis, max(ratio, high), place, words)
    axis.axvline(1, color=NOTE, linewidth=0.8, linestyle="--")
    axis.set_yticks(range(len(timings)), [textwrap.fill(text, 34) for text in labels], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, max((float(row["ratio_high"]) for row in timings), default=1) * 1.45)
    axis.set_xlabel("times as fast as the baseline")
    _open(axis)
    return figure


def speed_label(row: Mapping[str, Any]) -> str:
    """A variant and what it was fed: `int8, 1 x 128 tokens` or `int8, 1 x 1 tokens after 500`."""
    past = f" after {row['past']}" if row.get("past") else ""
    return f"{row['name']}, {row.get('batch', 1)} x {row['tokens']} tokens{past}"


def _open(axis: Axes) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
