"""One HTML file about a run that needs nothing else: tables, and plots as embedded pictures."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sparsify.errors import DataError
from sparsify.files import read_json
from sparsify.measure.figure import bars_figure, png
from sparsify.measure.plots import loss_plot, masks_plot, passes_plot, speed_label, speed_plot

Row = Mapping[str, Any]
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #dfe3e8; text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.88em; }
pre { background: #f4f6f8; padding: 0.8rem; white-space: pre-wrap; }
"""


def write_page(folder: Path, rows: Sequence[Row] = (), figures: Sequence[Path] = ()) -> Path:
    """Write `report.html` into a run's folder and return its path.

    Reads `report.json` (a row a pass) and, where there are, `train.json` (a row a step, or a
    mapping from a name to such rows), `eval.json` (measures by name) and `bench.json` (see
    `latency.to_json`). `rows` are variants to draw side by side (see `bars`), `figures` PNG files.
    Raises DataError when `report.json` is missing or a file is damaged.
    """
    passes = _read(folder, "report.json", list)
    if not passes:
        raise DataError(f"'{folder / 'report.json'}' has no pass in it; nothing was run")
    parts = [_pipeline(passes), _passes(passes)]
    if rows:
        parts += [_heading("Side by side"), _picture(png(bars_figure(rows, "")), "variants")]
    parts += _training(folder) + _quality(folder) + _speed(folder)
    for path in figures:
        parts += [_heading(path.stem.replace("-", " ")), _picture(_bytes(path), path.stem)]
    return _write(folder / "report.html", f"Report of {folder.resolve().name}", parts)


def _pipeline(passes: Sequence[Row]) -> str:
    text = " | ".join(str(row["text"]) for row in passes)
    return _heading("Pipeline") + f"<pre>{escape(text)}</pre>"


def _passes(passes: Sequence[Row]) -> str:
    header = ("pass", "places", "nodes", "parameters", "zeros", "seconds", "moved")
    cells = [
        (
            row["name"],
            row["places"],
            row["nodes"],
            f"{row['parameters']:,}",
            f"{row['zeros']:,}",
            f"{row['seconds']:.2f}",
            f"{row['move']:.1e}",
        )
        for row in passes
    ]
    notes = "".join(
        f"<p>{escape(row['name'])}: {escape(row['note'])}</p>" for row in passes if row.get("note")
    )
    picture = _picture(png(passes_plot(passes)), "parameters after each pass")
    return _heading("Passes") + _table(header, cells) + notes + picture


def _training(folder: Path) -> list[str]:
    found = _read(folder, "train.json", (list, dict), needed=False)
    runs = {"train": found} if isinstance(found, list) else found
    runs = {name: steps for name, steps in (runs or {}).items() if steps}
    if not runs:
        return []
    cells = [(name, len(steps), *_ends(steps)) for name, steps in runs.items()]
    header = ("training", "rows", "first loss", "last loss", "lowest loss")
    moving = {n: steps for n, steps in runs.items() if any("flips" in row for row in steps)}
    return [
        _heading("Training"),
        _picture(png(loss_plot(runs)), "loss over steps"),
        _table(header, cells),
        *(_picture(png(masks_plot(steps)), f"masks of {name}") for name, steps in moving.items()),
    ]


def _ends(steps: Sequence[Row]) -> tuple[str, str, str]:
    losses = [float(row["loss"]) for row in steps if row.get("loss") is not None]
    if not losses:
        return "", "", ""
    return f"{losses[0]:.4f}", f"{losses[-1]:.4f}", f"{min(losses):.4f}"


def _quality(folder: Path) -> list[str]:
    found = _read(folder, "eval.json", dict, needed=False)
    if not found:
        return []
    cells = [(name, _number(value)) for name, value in found.items()]
    return [_heading("Quality"), _table(("measure", "value"), cells)]


def _speed(folder: Path) -> list[str]:
    found = _read(folder, "bench.json", dict, needed=False)
    timings = (found or {}).get("timings")
    if not timings:
        return []
    header = ("variant", "median ms", "10 %", "90 %", "ratio", "10 %", "90 %")
    keys = ("median_ms", "p10_ms", "p90_ms", "ratio", "ratio_low", "ratio_high")
    cells = [(speed_label(row), *(f"{row[key]:.3f}" for key in keys)) for row in timings]
    facts = ", ".join(f"{key} {value}" for key, value in found.get("machine", {}).items())
    return [
        _heading("Speed"),
        _picture(png(speed_plot(timings)), "speed against the baseline"),
        _table(header, cells),
        f"<p>Measured on: {escape(facts)}</p>" if facts else "",
    ]


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _read(folder: Path, name: str, kind: Any, *, needed: bool = True) -> Any:
    path = folder / name
    if not path.is_file():
        if needed:
            raise DataError(f"'{folder}' has no {name}; name a folder that a run has written")
        return None
    value = read_json(path)
    if not isinstance(value, kind):
        raise DataError(f"'{path}' is not a file of a run: it holds a {type(value).__name__}")
    return value


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"the figure '{path}' cannot be read: {error.strerror}") from error


def _heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def _picture(data: bytes, words: str) -> str:
    encoded = base64.b64encode(data).decode("ascii")
    return f'<p><img alt="{escape(words)}" src="data:image/png;base64,{encoded}"></p>'


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(word)}</th>" for word in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _write(path: Path, title: str, parts: Sequence[str]) -> Path:
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"could not write '{path}': {error.strerror or error}") from error
    return path
