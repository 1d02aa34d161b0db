"""Keeping what was measured: figures beside the models, and in the cards of those they are about."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsify.describe.card import CARD, MEASURED
from sparsify.disk.files import read_mapping, write_json, write_text
from sparsify.disk.locks import InUse, locked
from sparsify.measure.latency import shape_words
from sparsify.report.found import model_folders

Row = Mapping[str, Any]


def record(folder: Path, name: str, figures: Mapping[str, Any]) -> str:
    """Write `eval.json` or `bench.json` into a folder, and bring the cards of the models in it up to date.

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
            f"`{Path(row['data']).name}`, context {row['context']})"
        )
    if "mean" in row:
        yield (
            f"- embeddings: mean cosine {row['mean']:.4f} to those of the dense model, lowest "
            f"{row['lowest']:.4f} ({row['sentences']:,} sentences of `{Path(row['data']).name}`)"
        )
    bench = _read(folder, "bench")
    if bench.get("file") == name:
        for timing in bench["timings"]:
            if timing["name"] != "dense":
                yield (
                    f"- {timing['ratio']:.2f} times as fast as the dense model "
                    f"({timing['ratio_low']:.2f} to {timing['ratio_high']:.2f}, {shape_words(timing)}, "
                    f"{bench['threads']} thread(s), {bench['machine']['cpu']})"
                )


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / f"{name}.json"
    return read_mapping(path) if path.is_file() else {}
