"""`sparsify-fx show --cost`: what a token of a program costs, as tables."""

import textwrap

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify.describe.cost import MEANING, Cost, cost, summary
from sparsify.describe.of_program import usual_length
from sparsify.ir.program import Program
from sparsify.report.figure import short

WIDTH = 80


def show_cost(program: Program, console: Console) -> None:
    """Print parameters, arithmetic of forward and training apart, and the bytes of steps."""
    found = cost(program, 1, max(1, usual_length(program)))
    console.print(totals_table(found))
    console.print(steps_table(found))
    for sentence in MEANING:
        console.out(textwrap.fill(sentence, WIDTH), highlight=False)


def totals_table(found: Cost) -> Table:
    """What a token costs, a row a figure."""
    table = _table("a token", "")
    for name, value in summary(found):
        table.add_row(name, value)
    return table


def steps_table(found: Cost) -> Table:
    """What steps of several numbers of tokens touch and compute, the two in columns of their own."""
    table = _table("tokens", "experts touched", "bytes touched", "of all", "forward multiply-adds")
    for step in found.steps():
        touched = f"{step.experts:,.1f}" if found.experts else "-"
        share = f"{100 * step.share:.1f} %"
        work = short(step.multiply_adds)
        table.add_row(f"{step.tokens:,}", touched, f"{short(step.bytes)}B", share, work)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
