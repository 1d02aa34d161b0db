"""`sparsify-fx show`, `passes` and `recipes`: programs, axes and catalogues as text."""

import dataclasses
import inspect
from typing import Any, get_type_hints

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify.commands.artifacts import open_program
from sparsify.commands.cost import show_cost
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.engine.registry import passes
from sparsify.errors import OptionError, PipelineError, nearest
from sparsify.ir.axes.summary import AxisRow, rows
from sparsify.ir.axes.walk import analyse
from sparsify.ir.text import header, to_text
from sparsify.pretrained.load import STRICT, Loading
from sparsify.recipes import recipe, recipes, template
from sparsify.text.options import describe_type


def show(
    model: str,
    pipeline: str | None,
    axes: bool,
    cost: bool,
    console: Console,
    loading: Loading = STRICT,
) -> None:
    """Print a program as text, after a pipeline of passes that need no data, its coupled axes, or its cost.

    Raises OptionError where both are asked for.
    """
    if axes and cost:
        raise OptionError("--axes and --cost each print something of their own; give one of them")
    passes = parse(pipeline) if pipeline else None
    program = open_program(model, loading)
    if passes is not None:
        program = passes.run(program, Context())
    if axes:
        console.print(axes_table(program))
        return
    if cost:
        show_cost(program, console)
        return
    console.out(header(program))
    console.out(to_text(program), end="")


def axes_table(program: Any) -> Table:
    """The axes, alike ones of all layers in one row: how many, how long, where, and why they are pinned."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("axis", "number", "size"):
        table.add_column(name, no_wrap=True)
    for name, width in (("where", 32), ("tensors", 22), ("may go", 24)):
        table.add_column(name, overflow="fold", max_width=width)
    for row in rows(analyse(program)):
        tensors = "" if row.pins else _some(list(row.tensors), 3)
        where = _some(list(row.where), 2)
        table.add_row(row.kind, str(row.count), row.size, where, tensors, _verdict(row))
    return table


def _verdict(row: AxisRow) -> str:
    """The pass that removes an axis, or why it stays."""
    if row.pins:
        return "no: " + _some(list(row.pins), 2, "; ")
    removers = {"layers": "prune-layers", "blocks": "prune-layers of=blocks"}
    names = passes()
    name = removers.get(row.kind, f"prune-{row.kind}")
    return name if name.partition(" ")[0] in names else "free, without a pass"


def _some(words: list[str], count: int, joint: str = ", ") -> str:
    more = f" +{len(words) - count}" if len(words) > count else ""
    return joint.join(words[:count]) + more


def show_passes(name: str | None, console: Console) -> None:
    """List the passes, or print one with its rewrite, options and features."""
    known = passes()
    if name is None:
        table = Table("pass", "what it does")
        for key, kind in known.items():
            table.add_row(key, summary(kind))
        console.print(table)
        return
    if name not in known:
        raise PipelineError(f"no pass is called '{name}'{nearest(name, known)}")
    kind = known[name]
    console.out(inspect.getdoc(inspect.getmodule(kind)) or "")
    console.out("")
    console.out(inspect.getdoc(kind) or "")
    table = Table("option", "values", "default")
    for option in options(kind):
        table.add_row(*option)
    console.print(table)


def options(kind: type) -> list[tuple[str, str, str]]:
    """Name, values and default of every option of a pass or exporter."""
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for field in dataclasses.fields(kind):
        default = "required" if field.default is dataclasses.MISSING else _spell(field.default)
        found.append((field.name, describe_type(hints[field.name]), default))
    return found


def summary(kind: type) -> str:
    """The first sentence of a pass's module: what it does."""
    text = (inspect.getdoc(inspect.getmodule(kind)) or "").splitlines()[0]
    return text.partition(": ")[2]


def show_recipes(name: str | None, console: Console) -> None:
    """List the recipes, or print the text of one."""
    if name is not None:
        console.out((recipe if "{" in name else template)(name).text)
        return
    table = Table("recipe", "what comes out", "pipeline")
    for item in recipes():
        table.add_row(item.name, item.about, item.text)
    console.print(table)


def _spell(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "nothing"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
