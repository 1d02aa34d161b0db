"""Write what comes from the code: docs/passes.md, docs/recipes.md and the catalogue of the command line."""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from passes import ALL
from sparsify.engine.registry import needs_of
from sparsify.recipes import RECIPES
from sparsify.text.catalogue import Catalogue, Entry, entry_of
from sparsify.text.syntax import parse_calls

ROOT = Path(__file__).parent.parent
SWEPT = "benchmarks/results/zoo.json"
STEPS = (
    "trace",
    "heads",
    "channels",
    "experts",
    "hidden",
    "layers",
    "2:4",
    "onnx",
    "decode",
    "folder",
)
_MARKS = {
    "yes": "yes",
    "-": "none",
    "refused": "refused",
    "fault": "fault",
    "wrong": "wrong",
    "slow": "slow",
}
_FAMILIES = """# Families of the model library

What `make zoo` has found of the families of transformers, each small and random: traced and held against
its model; half of each kind of axis (a quarter of the hidden size) masked and removed, which must come to the
same; linears and matrices of experts pruned 2:4 and packed; written to ONNX and read back; written
with a cache, whose greedy tokens must be the model's own; written to a folder that transformers loads.
`none`: the family has no such axis, or none that may go, or does not generate; `refused`: with the sentence
below; an empty cell: untried.

A family has a model for a task (language, classification, speech, pictures and text), or is a bare model,
often a part of another family. Built small by one rule for all, not tuned to each. Whole is a family with
heads or channels removed equal to their mask, to ONNX and back. Tracing a family and holding it against its
model takes {median:.1f} s in the median, {longest:.0f} s at most (on two cores with other work beside it).

| | built | traced | every step tried | whole |
|---|---|---|---|---|
{counts}

"""
_BARE = "AutoModel"
NOTE = "<!-- Written by docs/generate.py; do not edit. -->\n\n"


def passes_page() -> str:
    """Every pass: its rewrite, its options, what it needs, adds, sets and drops by default."""
    parts = [NOTE + "# Passes\n"]
    for item in map(entry_of, ALL):
        parts.append(f"## {item.name}\n\n{item.about}\n\n{_indented_as_code(item.rewrite)}\n")
        parts.append(item.doc + "\n")
        parts.append(_options(item))
        for part in item.parts:
            parts.append(f"**{part.name}{{...}}**: {part.doc}\n\n{_options(part)}")
    return "\n".join(parts)


def _options(item: Entry) -> str:
    rows = [f"| `{n}` | `{v.replace('|', ' or ')}` | `{d}` |" for n, v, d in item.options]
    return "\n".join(
        ["| option | values | default |", "|---|---|---|", *(rows or ["| none | | |"]), ""]
    )


def recipes_page() -> str:
    """Every recipe: a sentence and its text."""
    parts = [NOTE + "# Recipes\n"]
    for item in RECIPES:
        text = item.text.replace(" | ", " |\n")
        parts.append(f"## {item.name}\n\n{item.about}\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def catalogue_file() -> str:
    """The passes and what the recipes need, as the command line reads them."""
    entries = tuple(entry_of(kind, example_of(kind.name)) for kind in ALL)
    needs = {item.name: needs_of(item.text) for item in RECIPES}
    return json.dumps(asdict(Catalogue(entries, needs)), indent=1, ensure_ascii=False) + "\n"


def example_of(name: str) -> str:
    """The shortest recipe that holds a pass, as text; nothing where none does."""
    with_it = [r for r in RECIPES if name in {call.name for call in parse_calls(r.text)}]
    if not with_it:
        return ""
    return min(with_it, key=lambda item: len(item.text)).text


def families_page() -> str:
    """What the sweep of `make zoo` has found of each family of the model library."""
    rows = json.loads((ROOT / SWEPT).read_text(encoding="utf-8"))["rows"]
    unbuilt = {
        family: row["built"] for family, row in sorted(rows.items()) if row["built"] != "yes"
    }
    rows = {family: row for family, row in sorted(rows.items()) if row["built"] == "yes"}
    seconds = [row["seconds"]["trace"] for row in rows.values() if row.get("trace") == "yes"]
    bare = [row for row in rows.values() if row["task"] == _BARE]
    tasks = [row for row in rows.values() if row["task"] != _BARE]
    counts = "\n".join([_counted("of a task", tasks), _counted("bare", bare)])
    about = {"median": statistics.median(seconds), "longest": max(seconds)}
    parts = [NOTE + _FAMILIES.format(counts=counts, **about)]
    parts.append("| | " + " | ".join(STEPS) + " |\n|---|" + "---|" * len(STEPS))
    for answer in _MARKS.values():
        counts = [sum(_mark(row, step) == answer for row in rows.values()) for step in STEPS]
        if any(counts):
            parts.append(f"| {answer} | " + " | ".join(map(str, counts)) + " |")
    parts.append("\n| family | " + " | ".join(STEPS) + " |\n|---|" + "---|" * len(STEPS))
    for family, row in rows.items():
        parts.append(f"| {family} | " + " | ".join(_mark(row, step) for step in STEPS) + " |")
    parts.append("\n## In their words\n")
    for family, row in rows.items():
        for step in STEPS:
            if _mark(row, step) in ("refused", "fault", "wrong", "slow"):
                parts.append(f"- {family}, {step}: {_escaped(row[step])}")
    parts.append("\n## Not made small by rule\n")
    parts += [f"- {family}: {_escaped(said)}" for family, said in unbuilt.items()]
    return "\n".join(parts) + "\n"


def _counted(name: str, rows: Sequence[dict[str, str]]) -> str:
    """A row of how many of some families came how far."""
    tried = [row for row in rows if STEPS[-1] in row or _mark(row, STEPS[0]) != "yes"]
    traced = sum(_mark(row, STEPS[0]) == "yes" for row in rows)
    whole = sum(_went_all_the_way(row) for row in tried)
    shares = [f"{count} ({count / len(rows):.0%})" for count in (traced, len(tried), whole)]
    return f"| {name} | {len(rows)} | {' | '.join(shares)} |"


def _escaped(said: str) -> str:
    """An answer without what Markdown would read."""
    return said.replace("<", "&lt;").replace("|", "&#124;").replace("*", "\\*")


def _went_all_the_way(row: dict[str, str]) -> bool:
    """Whether heads or channels went, and ONNX gave the same."""
    return "yes" in (_mark(row, "heads"), _mark(row, "channels")) and _mark(row, "onnx") == "yes"


def _mark(row: dict[str, str], step: str) -> str:
    """What a step has answered, in a word; nothing where it was not done."""
    word = row.get(step, "").split(" ")[0].rstrip(":")
    return _MARKS.get(word, word)


def _indented_as_code(text: str) -> str:
    """Indented lines of a docstring become fenced blocks."""
    lines, inside = [], False
    for line in text.splitlines():
        if line.startswith("    ") and not inside:
            lines.append("```")
            inside = True
        elif inside and not line.startswith("    ") and line:
            while not lines[-1]:
                lines.pop()
            lines += ["```", ""]
            inside = False
        lines.append(line.removeprefix("    ") if inside else line)
    return "\n".join([*lines, "```"] if inside else lines)


PAGES = {
    "docs/passes.md": passes_page,
    "docs/families.md": families_page,
    "docs/recipes.md": recipes_page,
    "sparsify/text/catalogue.json": catalogue_file,
}


def main() -> int:
    """Write the pages; with `--check`, only say which are stale and exit with 1."""
    stale = []
    for name, make in PAGES.items():
        text = make()
        path = ROOT / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    print("stale: " + ", ".join(stale) if stale else "up to date")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
