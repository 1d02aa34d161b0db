"""The sections of a report's page; one of what was not recorded says so, and what would record it."""

from collections.abc import Callable, Mapping
from typing import Any

from sparsify.data.spec import without_folders
from sparsify.describe.facts import Facts
from sparsify.measure.latency import shape_words
from sparsify.measure.machine import machine_line
from sparsify.measure.tasks import metric_names, metric_words
from sparsify.report.curves import curves
from sparsify.report.figure import longest_bar
from sparsify.report.found import Found, Row
from sparsify.report.heat import heat_maps
from sparsify.report.html import Html, Part, bar, join, section, size, table, tag, unmeasured


def sparsity(found: Found, facts: Facts | None, missing: str) -> Html:
    """The heat map, or why there is none."""
    if facts is None:
        return section("Sparsity", _note(missing or "The weights are not listed here."))
    notes = []
    if not facts.were:
        notes.append(
            "Nothing counts as removed: what the model had when it was traced is not known."
        )
    apart = [
        form.name for form in found.formats if form.facts and form.facts.weights != facts.weights
    ]
    if apart:
        notes.append(f"The map is of another program than the one in {', '.join(apart)}.")
    return section("Sparsity", heat_maps(facts.weights), map(_note, notes))


def quality(found: Found) -> Html:
    """Perplexities, similarities of embeddings, and scores on tasks."""
    if not found.quality:
        command = f"sparsify-fx eval {found.title} --data TEXT"
        return section("Quality", unmeasured("Quality was not measured here.", command))
    parts = []
    for key, header in (
        ("perplexity", ("model", "kind", "text", "perplexity", "tokens", "context")),
        ("mean", ("model", "kind", "text", "mean cosine", "lowest", "sentences")),
    ):
        rows = [_quality_row(row) for row in found.quality.values() if key in row]
        if rows:
            parts.append(table(header, rows, words=(1, 2)))
    return section("Quality", *parts, _tasks(found))


def _tasks(found: Found) -> Html | None:
    """A row a model and task, a column a metric."""
    asked = [
        (row, task) for row in found.quality.values() for task in row.get("tasks", {}).values()
    ]
    if not asked:
        return None
    names = metric_names([task for _, task in asked])
    rows = [
        (
            str(row["name"]),
            str(row["kind"]),
            str(task["task"]),
            *(metric_words(task["metrics"][n]) if n in task["metrics"] else "" for n in names),
            f"{task['items']:,}",
            str(task["shots"]),
        )
        for row, task in asked
    ]
    return table(("model", "kind", "task", *names, "items", "shots"), rows, words=(1, 2))


def _quality_row(row: Row) -> tuple[str, ...]:
    about = (str(row["name"]), str(row["kind"]), without_folders(str(row["data"])))
    if "perplexity" in row:
        return (*about, f"{row['perplexity']:.3f}", f"{row['tokens']:,}", str(row["context"]))
    return (*about, f"{row['mean']:.4f}", f"{row['lowest']:.4f}", f"{row['sentences']:,}")


def speed(found: Found) -> Html:
    """Every timing with its ratio to the dense model as a bar."""
    timings = found.bench.get("timings")
    if not timings:
        command = f"sparsify-fx bench {found.title} --against DENSE"
        return section("Speed", unmeasured("Speed was not measured here.", command))
    top = longest_bar([(row["ratio"], row["ratio_high"]) for row in timings])
    header = ("model", "fed", "times as fast as dense", "10\u201390 %", "median ms", "10\u201390 %")
    facts = [f"{found.bench['threads']} thread(s)"] if "threads" in found.bench else []
    facts += [machine_line(found.bench["machine"])] if "machine" in found.bench else []
    note = tag("p", ", ".join(["ONNX Runtime", *facts]), class_="note")
    return section("Speed", table(header, [_timing(row, top) for row in timings], (1,)), note)


def _timing(row: Row, top: float) -> tuple[Part, ...]:
    spread = (min(1, row["ratio_low"] / top), min(1, row["ratio_high"] / top))
    return (
        row["name"],
        shape_words(row),
        [bar(row["ratio"] / top, spread, 1 / top), f"{row['ratio']:.2f} \u00d7"],
        f"{row['ratio_low']:.2f}\u2013{row['ratio_high']:.2f}",
        f"{row['median_ms']:.3f}",
        f"{row['p10_ms']:.3f}\u2013{row['p90_ms']:.3f}",
    )


def pipeline(found: Found, facts: Facts | None) -> Html:
    """The text of the pipeline, a pass a line."""
    steps = [str(row["text"]) for row in found.passes] or list(facts.pipeline if facts else ())
    if not steps:
        return section(
            "Pipeline", _note("No pass has changed this model, as far as this folder tells.")
        )
    return section("Pipeline", tag("pre", "\n| ".join(steps)))


def passes(found: Found) -> Html:
    """What each pass took and left."""
    if not found.passes:
        return section(
            "Passes",
            _note(
                "The seconds of each pass are not recorded here: they stand in the folder of the run."
            ),
        )
    longest = max(row["seconds"] for row in found.passes) or 1
    total, checks = (sum(row[key] for row in found.passes) for key in ("seconds", "checking"))
    header = ("pass", "seconds", "checks", "places", "parameters", "zeros", "outputs moved")
    notes = [(row["name"], row["note"]) for row in found.passes if row.get("note")]
    return section(
        "Passes",
        tag(
            "p",
            f"{total:.1f} s in the passes, {checks:.1f} s in checking what they did.",
            class_="note",
        ),
        table(header, [_pass(row, longest) for row in found.passes]),
        tag("ul", *(tag("li", tag("b", name), f": {note}") for name, note in notes), class_="notes")
        if notes
        else None,
    )


def _pass(row: Row, longest: float) -> tuple[Part, ...]:
    return (
        row["name"],
        [bar(row["seconds"] / longest), f"{row['seconds']:.2f}"],
        f"{row['checking']:.2f}",
        f"{row['places']:,}",
        f"{row['parameters']:,}",
        f"{row['zeros']:,}",
        f"{row['move']:.1e}" if row["move"] else "0",
    )


def training(found: Found) -> Html:
    """Curves of every training; nothing where nothing was trained."""
    if not found.training:
        return Html()
    named = len(found.training) > 1
    runs = [
        (tag("h3", name) if named else None, curves(rows)) for name, rows in found.training.items()
    ]
    return section("Training", runs)


def files(found: Found) -> Html:
    """The formats and their bytes."""
    if not found.formats:
        return Html()
    rows = [(form.name, size(form.bytes), f"{form.bytes:,}") for form in found.formats]
    return section("On disk", table(("folder", "all files", "bytes"), rows))


def made(found: Found) -> Html:
    """What decided the result of a run, and the machine it ran on."""
    words: dict[str, Callable[[Any], str]] = {"machine": machine_line, "domains": _domains}
    rows = [
        (key, words.get(key, str)(value))
        for key, value in found.run.items()
        if key != "pipeline" and value is not None
    ]
    if not rows:
        return Html()
    return section(
        "The run", tag("dl", *(join([tag("dt", key), tag("dd", text)]) for key, text in rows))
    )


def _domains(found: Mapping[str, Row]) -> str:
    """Each domain with the weight that it began with."""
    return ", ".join(
        f"{name} {row['weight']:.4g} ({row['sequences']:,} sequences, {row['held_out']:,} held out)"
        for name, row in found.items()
    )


def _note(text: str) -> Html:
    return tag("p", text, class_="none")
