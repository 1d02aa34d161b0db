"""Keeping what was measured: figures beside the models, and in the cards of those they are about."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsify.data.spec import without_folders
from sparsify.describe.card import MEASURED
from sparsify.disk.files import read_mapping, write_json, write_text
from sparsify.disk.locks import InUse, locked
from sparsify.errors import DataError
from sparsify.measure.latency import shape_words
from sparsify.measure.tasks import metric_words
from sparsify.pretrained.origin import CARD
from sparsify.report.found import model_folders

Row = Mapping[str, Any]


def record(folder: Path, name: str, figures: Mapping[str, Any]) -> str:
    """Write `eval.json` or `bench.json` into a folder, and bring the cards of the models in it up to date.

    Perplexities and scores on tasks that were measured of the same model at other times stay.
    Only what stands between the marks of a card changes; a card without them stays as it is. While a
    run is writing there nothing is written; the sentence returned then says so, and is empty otherwise.
    """
    try:
        with locked(folder):
            _record(folder, name, figures)
    except InUse as error:
        return f"not kept beside the model: {error}"
    return ""


def _record(folder: Path, name: str, figures: Mapping[str, Any]) -> None:
    if name == "eval":
        known: Row = {}
        with contextlib.suppress(DataError):  # what is damaged is written anew
            known = _read(folder, name)
        figures = {key: _with(row, known.get(key)) for key, row in figures.items()}
    write_json(folder / f"{name}.json", figures)
    for place in model_folders(folder):
        path = place / CARD
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        before, opened, rest = text.partition(MEASURED[0])
        _, closed, after = rest.partition(MEASURED[1])
        lines = list(_lines(folder, place))
        if opened and closed and lines:
            write_text(path, "\n".join([before + opened, *lines, closed + after]))


def _lines(folder: Path, place: Path) -> Iterator[str]:
    """Sentences on one model among those that were measured together."""
    name = place.name
    row = _read(folder, "eval").get(name, {})
    if "perplexity" in row:
        yield (
            f"- perplexity {row['perplexity']:.4g} ({row['tokens']:,} tokens of "
            f"`{without_folders(row['data'])}`, context {row['context']})"
        )
    if "mean" in row:
        yield (
            f"- embeddings: mean cosine {row['mean']:.4f} to those of the dense model, lowest "
            f"{row['lowest']:.4f} ({row['sentences']:,} sentences of `{without_folders(row['data'])}`)"
        )
    for found in _tasks(row).values():
        metrics = found["metrics"].items()
        words = ", ".join(f"{key} {metric_words(value)}" for key, value in metrics)
        yield f"- {found['task']}: {words} ({found['items']:,} items, {found['shots']} shots)"
    bench = _read(folder, "bench")
    if bench.get("file") == name:
        for timing in bench["timings"]:
            if timing["name"] != "dense":
                yield (
                    f"- {timing['ratio']:.2f} times as fast as the dense model "
                    f"({timing['ratio_low']:.2f} to {timing['ratio_high']:.2f}, {shape_words(timing)}, "
                    f"{bench['threads']} thread(s), {bench['machine']['cpu']})"
                )


def _with(row: Row, before: Any) -> Row:
    """A row of quality with what it does not measure anew: tasks by name, all else at once."""
    if not isinstance(before, Mapping):
        return row
    tasks = {**_tasks(before), **_tasks(row)}
    kept = row if set(row) - {"name", "kind", "tasks"} else {**before, **row}
    return {**kept, "tasks": tasks} if tasks else kept


def _tasks(row: Row) -> Mapping[str, Any]:
    found = row.get("tasks", {})
    return found if isinstance(found, Mapping) else {}


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / f"{name}.json"
    return read_mapping(path) if path.is_file() else {}
