"""Write the pages of docs/ that come from the code: passes.md and recipes.md."""

import inspect
import sys
from pathlib import Path

from sparsify.commands.show import options
from sparsify.engine.registry import passes
from sparsify.recipes import RECIPES

HERE = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py; do not edit. -->\n\n"


def passes_page() -> str:
    """Every pass: its rewrite, its options, what it needs, adds, sets and drops by default."""
    parts = [NOTE + "# Passes\n"]
    for name, kind in passes().items():
        module = inspect.getdoc(inspect.getmodule(kind)) or ""
        head, _, body = module.partition("\n\n")
        parts.append(f"## {name}\n\n{head.partition(': ')[2]}\n\n{_indented_as_code(body)}\n")
        parts.append((inspect.getdoc(kind) or "") + "\n")
        parts.append("| option | values | default |\n|---|---|---|")
        rows = [f"| `{n}` | `{v.replace('|', ' or ')}` | `{d}` |" for n, v, d in options(kind)]
        parts.append("\n".join(rows) + "\n" if rows else "| none | | |\n")
    return "\n".join(parts)


def recipes_page() -> str:
    """Every recipe: a sentence and its text."""
    parts = [NOTE + "# Recipes\n"]
    for item in RECIPES:
        text = item.text.replace(" | ", " |\n")
        parts.append(f"## {item.name}\n\n{item.about}\n\n```\n{text}\n```\n")
    return "\n".join(parts)


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


PAGES = {"passes.md": passes_page, "recipes.md": recipes_page}


def main() -> int:
    """Write the pages; with `--check`, only say which are stale and exit with 1."""
    stale = []
    for name, make in PAGES.items():
        text = make()
        path = HERE / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    print("stale: " + ", ".join(stale) if stale else "up to date")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
