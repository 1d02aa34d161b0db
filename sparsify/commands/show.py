"""`sparsify-fx show`: programs, their axes and their cost as text."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify.commands.artifacts import open_program
from sparsify.commands.cost import show_cost
from sparsify.describe.cost import cost as cost_of
from sparsify.describe.of_program import usual_length
from sparsify.disk.files import write_json
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.engine.registry import passes
from sparsify.errors import OptionError
from sparsify.ir.axes.summary import AxisRow, rows
from sparsify.ir.axes.walk import analyse
from sparsify.ir.program import Program
from sparsify.ir.text import header, to_text
from sparsify.pretrained.loading import STRICT, Loading


def show(
    model: str,
    pipeline: str | None,
    axes: bool,
    cost: bool,
    console: Console,
    loading: Loading = STRICT,
    json: Path | None = None,
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
    if json is not None:
        write_json(json, _figures(program, axes, cost))
    if axes:
        console.print(axes_table(program))
        return
    if cost:
        show_cost(program, console)
        return
    console.out(header(program))
    console.out(to_text(program), end="")


def _figures(program: Program, axes: bool, cost: bool) -> dict[str, Any]:
    """What is printed, as JSON values: a row an axis, the cost of a token, or the text."""
    if axes:
        return {"axes": [asdict(row) for row in rows(analyse(program))]}
    if cost:
        return {"cost": asdict(cost_of(program, 1, max(1, usual_length(program))))}
    features = sorted(program.features)
    return {"class": program.source.model_class, "features": features, "text": to_text(program)}


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
