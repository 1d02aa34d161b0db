"""`sparsify-fx passes` and `recipes`: what there is, from plain data, so that it answers at once."""

import json as json_text
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify.plugins import PASSES, offered, plugins
from sparsify.recipes.catalogue import recipe, recipes, template
from sparsify.recipes.recipe import Recipe
from sparsify.text import catalogue as plain
from sparsify.text.catalogue import Entry, catalogue, entry_of, unknown_name

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]


def show_passes(name: Annotated[str | None, typer.Argument()] = None, json: Json = False) -> None:
    """List the passes, or explain one: rewrite, options with their defaults, an example."""
    console = Console()
    entries = known()
    if name is not None:
        by_name = {item.name: item for item in entries}
        if name not in by_name:
            raise unknown_name("pass", name, by_name)
        entries = (by_name[name],)
    if json:
        print(json_text.dumps([asdict(item) for item in entries], indent=1))
    elif name is not None:
        explain(entries[0], console)
    else:
        rows = [(item.name, item.about) for item in entries]
        console.print(listed(("pass", "what it does"), rows))


def show_recipes(name: Annotated[str | None, typer.Argument()] = None, json: Json = False) -> None:
    """List the recipes, or print the pipeline of one, a pass a line."""
    console = Console()
    items = recipes() if name is None else ((recipe if "{" in name else template)(name),)
    if json:
        rows = [{**asdict(item), "needs": list(needs(item))} for item in items]
        print(json_text.dumps(rows, indent=1))
    elif name is not None:
        for line in passes_of(items[0].text):
            console.out("\n".join(folded(line, console.width)), highlight=False)
    else:
        lines = [(item.name, item.about, ", ".join(needs(item)) or "-") for item in items]
        console.print(listed(("recipe", "what comes out", "needs"), lines))


def known() -> tuple[Entry, ...]:
    """Every pass, those of other packages last (which takes as long as they take to import)."""
    return (*catalogue().passes, *(entry_of(kind) for kind in plugins(PASSES)))


def check_words(text: str | None) -> None:
    """Refuse names that are not there before anything is imported; not where other packages offer passes."""
    if text and not offered(PASSES):
        plain.check_words(text, catalogue().passes)


def needs(item: Recipe) -> tuple[str, ...]:
    """What a recipe asks for: `data`, `training`."""
    found = catalogue().needs.get(item.name)
    if found is None:  # of another package
        from sparsify.engine.registry import needs_of

        found = needs_of(item.text)
    return found


def explain(item: Entry, console: Console) -> None:
    """Print a pass: what it does and rewrites, its options, an example."""
    console.print(f"[bold]{item.name}[/]: {item.about}", highlight=False)
    _said(item, console)
    for part in item.parts:
        console.print(f"\n[bold]{part.name}{{...}}[/]", highlight=False)
        _said(part, console)
    if item.example:
        console.print("\nfor example")
        for line in passes_of(item.example):
            console.out("\n".join(folded(f"  {line}", console.width)), highlight=False)


def _said(item: Entry, console: Console) -> None:
    for text in (item.rewrite, item.doc):
        for paragraph in text.split("\n\n") if text else ():
            console.print()
            filled(paragraph, console)
    if item.options:
        rows = [
            (name, values.replace("|", " | "), default) for name, values, default in item.options
        ]
        console.print(listed(("option", "values", "default"), rows))


def filled(paragraph: str, console: Console) -> None:
    """Print prose over the width that there is, and indented lines each by itself."""
    prose: list[str] = []
    for line in [*paragraph.splitlines(), ""]:
        if line and not line.startswith(" "):
            prose.append(line)
            continue
        if prose:
            console.print(" ".join(prose), highlight=False, markup=False)
            prose = []
        if line:
            console.out("\n".join(folded(line, console.width)), highlight=False)


def folded(line: str, width: int) -> list[str]:
    """A line broken where it is too wide, at columns or else at spaces, what follows set in.

    A pipeline stays what it is: options may stand on several lines.
    """
    if len(line) <= width:
        return [line]
    lead = line[: len(line) - len(line.lstrip())]
    gaps = [gap for gap in re.finditer(r"(?<=\S) {3,}(?=\S)", line) if gap.start() <= width]
    if gaps:
        rest = f"{lead}    {line[gaps[-1].end() :]}"
        return [line[: gaps[-1].start()], *folded(rest, width)]
    return textwrap.wrap(
        line.strip(),
        width,
        initial_indent=lead,
        subsequent_indent=f"{lead}    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def passes_of(text: str) -> list[str]:
    """A pipeline as lines, a pass each, which may be pasted as they are."""
    return text.replace(" | ", " |\n").splitlines()


def listed(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    """A table whose first column never wraps, readable at 80 columns."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
