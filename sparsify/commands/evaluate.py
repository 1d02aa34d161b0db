"""`sparsify-fx eval`: the perplexity of whatever lies in a folder."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from sparsify.commands.artifacts import Artifact, artifacts
from sparsify.data.sequences import Data, load_data
from sparsify.disk.files import write_json
from sparsify.errors import DataError
from sparsify.ir.facts.fitting import check_data
from sparsify.measure.quality import cosine, embed, perplexity
from sparsify.pretrained.load import STRICT, Loading
from sparsify.report.record import record


def evaluate(
    name: str,
    data: str,
    length: int,
    limit: int | None,
    against: str | None,
    json: Path | None,
    console: Console,
    loading: Loading = STRICT,
) -> list[dict[str, Any]]:
    """Measure every model in a folder on the same text and print a table; returns the rows.

    Perplexity; with `against`, how near mean-pooled embeddings are to another encoder's.
    """
    if against is not None:
        dense = artifacts(against, loading)[0]
        rows = [similarity(item, dense, data, length, limit) for item in artifacts(name, loading)]
        _write(name, rows, json, console)
        console.print(_similarity_table(rows, against))
        return rows
    rows = [measure(item, data, length, limit) for item in artifacts(name, loading)]
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
    _write(name, rows, json, console)
    return rows


def measure(item: Artifact, data: str, length: int, limit: int | None) -> dict[str, Any]:
    """The perplexity of one model on a text, with what it was measured on.

    Raises DataError for a model that gives no logits over its vocabulary, or does not take the text.
    """
    sequences = load_data(data, item.tokenizer, length)
    held = check_data(sequences, item.admission, f"the sequences of '{data}'")
    probe = _first(item, sequences)
    if probe.dim() != 3 or probe.shape[-1] <= held.largest:
        raise DataError(
            f"'{item.path}' gives {list(probe.shape)}, not logits over its vocabulary; "
            "perplexity is for language models; compare an encoder with --against"
        )
    found = perplexity(lambda batch: item.run(batch)[0], sequences, limit=limit)
    figures = asdict(found)
    figures["perplexity"] = figures.pop("value")
    return {"name": item.name, "kind": item.kind, "data": data, **figures}


def _first(item: Artifact, sequences: Data) -> Tensor:
    """The first output on one sequence; DataError when the model does not run on it."""
    return item.run({k: v for k, v in sequences.batch([0]).items() if k != "labels"})[0]


def similarity(
    item: Artifact, dense: Artifact, data: str, length: int, limit: int | None
) -> dict[str, Any]:
    """Cosine similarity of the embeddings of two encoders, over the lines of a text."""
    sentences = load_data(data, item.tokenizer, length, "sentences")
    for one in (item, dense):
        check_data(sentences, one.admission, f"the sentences of '{data}'")
        _first(one, sentences)
    found = cosine(
        embed(lambda batch: item.run(batch)[0], sentences, limit=limit),
        embed(lambda batch: dense.run(batch)[0], sentences, limit=limit),
    )
    return {"name": item.name, "kind": item.kind, "data": data, "context": length, **asdict(found)}


def _similarity_table(rows: list[dict[str, Any]], against: str) -> Table:
    table = Table("model", "kind", "mean cosine", "lowest", "sentences", title=f"against {against}")
    for row in rows:
        figures = (f"{row['mean']:.4f}", f"{row['lowest']:.4f}", str(row["sentences"]))
        table.add_row(row["name"], row["kind"], *figures)
    return table


def _write(name: str, rows: list[dict[str, Any]], json: Path | None, console: Console) -> None:
    if json is not None:
        write_json(json, rows)
    if Path(name).is_dir():
        said = record(Path(name), "eval", {row["name"]: row for row in rows})
        console.print(said, end="\n" if said else "", style="dim", soft_wrap=True, markup=False)
