"""One HTML file about a run or an exported model that needs nothing else: its head, and all together."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sparsify.data.spec import without_folders
from sparsify.describe.facts import Facts, Share
from sparsify.disk.files import write_text
from sparsify.disk.locks import locked
from sparsify.measure.latency import shape_words
from sparsify.measure.tasks import metric_words
from sparsify.report import sections
from sparsify.report.cost import mixture
from sparsify.report.figure import short
from sparsify.report.found import PAGE, Format, Found, Row
from sparsify.report.html import Html, bar, document, percent, size, tag


def write_page(found: Found, facts: Facts | None = None, missing: str = "") -> Path:
    """Write `report.html` into the folder that was read and return its path.

    `facts` stand in for those that no format of the folder has; `missing` says why there are none. Raises
    DataError when the file cannot be written, InUse while a run is writing there.
    """
    facts = found.facts or facts
    parts = [
        _head(found, facts),
        _tiles(found, facts),
        sections.sparsity(found, facts, missing),
        mixture(facts),
        sections.quality(found),
        sections.speed(found),
        sections.pipeline(found, facts),
        sections.passes(found),
        sections.training(found),
        sections.files(found),
        sections.made(found),
    ]
    path = found.folder / PAGE
    with locked(found.folder):
        write_text(path, document(f"Report of {found.title}", parts))
    return path


def _head(found: Found, facts: Facts | None) -> Html:
    about = [facts.model] if facts else []
    if found.run:
        about.append(f"made from {Path(str(found.run['model'])).name or found.run['model']}")
    if found.formats:
        about.append(", ".join(form.name for form in found.formats))
    return tag(
        "header",
        tag("p", "sparsify-fx report", class_="eyebrow"),
        tag("h1", found.title),
        tag("p", " \u00b7 ".join(about), class_="about"),
    )


def _tiles(found: Found, facts: Facts | None) -> Html:
    """The figures that matter most, large; those that were not measured say so."""
    tiles = _size_tiles(facts) if facts else []
    tiles += [_disk_tile(found.formats), _quality_tile(found.quality), _speed_tile(found.bench)]
    return tag("div", *tiles, class_="tiles")


def _tile(title: str, value: str, about: str, share: float | None = None) -> Html:
    return tag(
        "div",
        tag("p", title, class_="title"),
        tag("p", value or "not measured", class_="value" if value else "value none"),
        tag("p", about),
        bar(share) if share is not None else None,
        class_="tile",
    )


def _size_tiles(facts: Facts) -> list[Html]:
    whole = Share.of(facts.weights)
    kept = facts.parameters - facts.zeros
    before = facts.were or facts.parameters
    at = f"a forward of {facts.length} tokens" if facts.length else "a forward of one input"
    told = f"of {short(facts.were)} when traced" if facts.were else "before: not known"
    return [
        _tile("Parameters", short(facts.parameters), told, min(1, facts.parameters / before)),
        _tile(
            "Not zero", short(kept), f"{percent(whole.zero)} of linear weights zero", kept / before
        ),
        _tile("Multiply-adds", short(facts.multiply_adds), at),
    ]


def _disk_tile(formats: Sequence[Format]) -> Html:
    if not formats:
        return _tile("On disk", "", "nothing is exported here")
    least = min(formats, key=lambda form: form.bytes)
    others = f", the smallest of {len(formats)} formats" if len(formats) > 1 else ""
    return _tile("On disk", size(least.bytes), least.name + others)


def _quality_tile(quality: Mapping[str, Row]) -> Html:
    row = next(iter(quality.values()), {})
    if "perplexity" in row:
        about = f"{without_folders(str(row['data']))}, context {row['context']}"
        return _tile("Perplexity", f"{row['perplexity']:.4g}", about)
    if "mean" in row:
        return _tile("Mean cosine", f"{row['mean']:.4f}", f"of {row['sentences']:,} embeddings")
    for task in row.get("tasks", {}).values():
        for name, figure in task["metrics"].items():
            return _tile(name, metric_words(figure), f"{task['task']}, {task['items']:,} items")
    return _tile("Perplexity", "", "sparsify-fx eval")


def _speed_tile(bench: Row) -> Html:
    rows = [row for row in bench.get("timings", ()) if row["name"] != "dense"]
    if not rows:
        return _tile("Speed", "", "sparsify-fx bench")
    best = max(rows, key=lambda row: row["tokens"])
    return _tile("Speed", f"{best['ratio']:.2f} \u00d7", f"the dense model, {shape_words(best)}")
