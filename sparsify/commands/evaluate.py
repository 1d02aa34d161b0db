"""`sparsify-fx eval`: perplexity and scores on tasks of whatever lies in a folder."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sparsify.commands.artifacts import Artifact, artifacts
from sparsify.commands.bar import Bar, counted
from sparsify.commands.loudness import console as shared
from sparsify.data.domains import DomainData
from sparsify.data.load import load_data
from sparsify.data.sequences import Data
from sparsify.data.spec import without_folders
from sparsify.disk.files import write_json
from sparsify.errors import DataError, OptionError
from sparsify.ir.facts.fitting import check_data
from sparsify.measure.quality import cosine, embed, perplexity, to_perplexity
from sparsify.measure.suite import Suite
from sparsify.measure.tasks import Loaded, load_tasks, metric_names, metric_words, score
from sparsify.pretrained.loading import STRICT, Loading
from sparsify.report.record import record


@dataclass(frozen=True)
class Job:
    """What to measure: perplexity on the text `data`, scores on the tasks of `suite`, or both.

    With `against`, how near mean-pooled embeddings of `data` are to another encoder's. `length` is the
    tokens of a sequence of text, `limit` takes the first sequences and the first items of each task.
    """

    data: str | None
    length: int = 128
    limit: int | None = None
    batch: int = 8
    against: str | None = None
    suite: Suite | None = None


def evaluate(
    name: str, job: Job, json: Path | None, console: Console, loading: Loading = STRICT
) -> list[dict[str, Any]]:
    """Measure every model in a folder on the same, print tables and keep the rows, which it returns.

    Raises OptionError for a job that names nothing to measure, or what does not go together.
    """
    if job.data is None and (job.suite is None or job.against is not None):
        raise OptionError(
            "name a text by --data" + ("" if job.against else ", or tasks by --tasks")
        )
    if job.against is not None and job.suite is not None:
        raise OptionError(
            "--tasks is for language models, --against for encoders; give one of them"
        )
    if job.against is not None:
        dense = artifacts(job.against, loading.of_another())[0]
        rows = [similarity(item, dense, job) for item in artifacts(name, loading)]
        console.print(_similarity_table(rows, job.against))
    else:
        loaded = None
        if job.suite is not None:
            loaded = load_tasks(replace(job.suite, limit=job.limit, batch=job.batch))
        rows = [_measured(item, job, loaded, console) for item in artifacts(name, loading)]
        for table in _tables(rows, job):
            console.print(table)
    _write(name, rows, json, console)
    return rows


def _measured(item: Artifact, job: Job, loaded: Loaded | None, console: Console) -> dict[str, Any]:
    """The row of one model: `perplexity` with what belongs to it, and `tasks` by name."""
    row: dict[str, Any] = {"name": item.name, "kind": item.kind}
    if job.data is not None:
        row |= measure(item, job.data, job)
    if loaded is not None:
        with Bar(console) as bar:
            bar.start(item.name, None)
            scores = score(item, loaded, bar.watch)
        row["tasks"] = {found.task: asdict(found) for found in scores}
    return row


def measure(item: Artifact, data: str, job: Job) -> dict[str, Any]:
    """The perplexity of one model on a text, with what it was measured on.

    Of domains each has its own, in `domains`; that of all is `exp(sum w_i loss_i)` by their weights.
    Raises DataError for a model that gives no logits over its vocabulary, or does not take the text.
    """
    with counted("tokenising") as bar:
        read = load_data(data, item.tokenizer, job.length, holdout=0, watch=bar.watch)
    sequences = _first_of(read, job.limit)
    held = check_data(sequences, item.admission, f"the sequences of '{data}'")
    probe = _first(item, sequences)
    if probe.dim() != 3 or probe.shape[-1] <= held.largest:
        raise DataError(
            f"'{item.path}' gives {list(probe.shape)}, not logits over its vocabulary; "
            "perplexity is for language models; compare an encoder with --against"
        )
    if not isinstance(sequences, DomainData):
        return {"data": without_folders(data), **_figures(item, sequences, job)}
    found = {d.name: _figures(item, d.data, job) for d in sequences.domains}
    loss = math.fsum(d.weight * found[d.name]["loss"] for d in sequences.domains)
    tokens = sum(each["tokens"] for each in found.values())
    whole = {
        "tokens": tokens,
        "context": job.length,
        "loss": loss,
        "perplexity": to_perplexity(loss),
    }
    return {"data": without_folders(data), **whole, "domains": found}


def _figures(item: Artifact, data: Data, job: Job) -> dict[str, Any]:
    """The perplexity of one model on one data set."""
    with Bar(shared) as bar:
        bar.start(item.name, -(-min(len(data), job.limit or len(data)) // job.batch))

        def logits(batch: dict[str, Tensor]) -> Tensor:
            found = item.run(batch)[0]
            bar.advance()
            return found

        figures = asdict(perplexity(logits, data, job.batch, job.limit))
    figures["perplexity"] = figures.pop("value")
    return figures


def _first_of(data: Data, limit: int | None) -> Data:
    """Data with domains cut to the first `limit` sequences of each; any other as it is."""
    if isinstance(data, DomainData) and limit is not None:
        return data.first(limit)
    return data


def _first(item: Artifact, sequences: Data) -> Tensor:
    """The first output on one sequence; DataError when the model does not run on it."""
    return item.run({k: v for k, v in sequences.batch([0]).items() if k != "labels"})[0]


def similarity(item: Artifact, dense: Artifact, job: Job) -> dict[str, Any]:
    """Cosine similarity of the embeddings of two encoders, over the lines of a text."""
    data = str(job.data)
    with counted("tokenising") as bar:
        loaded = load_data(
            data, item.tokenizer, job.length, "sentences", holdout=0, watch=bar.watch
        )
    sentences = _first_of(loaded, job.limit)
    limit = None if isinstance(sentences, DomainData) else job.limit
    for one in (item, dense):
        check_data(sentences, one.admission, f"the sentences of '{data}'")
        _first(one, sentences)
    found = cosine(
        embed(lambda batch: item.run(batch)[0], sentences, job.batch, limit),
        embed(lambda batch: dense.run(batch)[0], sentences, job.batch, limit),
    )
    about = {
        "name": item.name,
        "kind": item.kind,
        "data": without_folders(data),
        "context": job.length,
    }
    return {**about, **asdict(found)}


def _tables(rows: list[dict[str, Any]], job: Job) -> Iterator[Table]:
    """A table of perplexities and one of scores, where they were asked for."""
    if job.data is not None:
        domains = list(rows[0].get("domains", {}))
        header = ("model", "kind", "perplexity", *domains, "tokens", "context")
        table = Table(*header, title=f"perplexity on {job.data}", box=SIMPLE_HEAD)
        for row in rows:
            values = [row, *(row["domains"][name] for name in domains)]
            figures = [f"{value['perplexity']:.3f}" for value in values]
            figures += [f"{row['tokens']:,}", str(row["context"])]
            table.add_row(row["name"], row["kind"], *figures)
        yield table
    if job.suite is not None:
        yield _score_table([(row, found) for row in rows for found in row["tasks"].values()])


def _score_table(rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> Table:
    """A row a model and task, a column a metric."""
    metrics = metric_names([found for _, found in rows])
    shots = any(found["shots"] for _, found in rows)
    table = Table("model", title="tasks" if shots else "tasks, 0 shots", box=SIMPLE_HEAD)
    for name in ("kind", "task", *metrics, "items", *(["shots"] if shots else [])):
        table.add_column(name, no_wrap=True)
    for row, found in rows:
        known = found["metrics"]
        cells = [metric_words(known[name]) if name in known else "" for name in metrics]
        cells += [f"{found['items']:,}", *([str(found["shots"])] if shots else [])]
        table.add_row(row["name"], row["kind"], found["task"], *cells)
    return table


def _similarity_table(rows: list[dict[str, Any]], against: str) -> Table:
    header = ("model", "kind", "mean cosine", "lowest", "sentences")
    table = Table(*header, title=f"against {against}", box=SIMPLE_HEAD)
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
