"""Write what comes from the code: docs/passes.md, docs/recipes.md and the catalogue of the command line."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from passes import ALL
from sparsify.engine.registry import needs_of
from sparsify.recipes import RECIPES
from sparsify.text.catalogue import Catalogue, Entry, entry_of
from sparsify.text.syntax import parse_calls

ROOT = Path(__file__).parent.parent
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
