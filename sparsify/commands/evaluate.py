"""`sparsify-fx eval`: the perplexity of whatever lies in a folder."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sparsify.artifacts import Artifact, artifacts
from sparsify.errors import DataError
from sparsify.files import write_json
from sparsify.measure.quality import perplexity
from sparsify.train.data import load_data


def evaluate(
    name: str, data: str, length: int, limit: int | None, json: Path | None, console: Console
) -> list[dict[str, Any]]:
    """Measure every model in a folder on the same text and print a table; returns the rows."""
    rows = [measure(item, data, length, limit) for item in artifacts(name)]
    table = Table("model", "kind", "perplexity", "tokens", "context", title=f"perplexity on {data}")
    for row in rows:
        table.add_row(
            row["name"],
            row["kind"],
            f"{row['perplexity']:.3f}",
            f"{row['tokens']:,}",
            str(row["context"]),
        )
    console.print(table)
    if json is not None:
        write_json(json, rows)
    if Path(name).is_dir():
        write_json(Path(name) / "eval.json", {row["name"]: row for row in rows})
    return rows


def measure(item: Artifact, data: str, length: int, limit: int | None) -> dict[str, Any]:
    """The perplexity of one model on a text, with what it was measured on.

    Raises DataError for a model that gives no logits over its vocabulary.
    """
    sequences = load_data(data, item.tokenizer, length)
    probe = item.run({k: v for k, v in sequences.batch([0]).items() if k != "labels"})[0]
    if probe.dim() != 3 or probe.shape[-1] < len(item.tokenizer):
        raise DataError(
            f"'{item.path}' gives {list(probe.shape)}, not logits over its vocabulary; "
            "perplexity is for language models"
        )
    found = perplexity(lambda batch: item.run(batch)[0], sequences, limit=limit)
    figures = asdict(found)
    figures["perplexity"] = figures.pop("value")
    return {"name": item.name, "kind": item.kind, "data": data, **figures}
