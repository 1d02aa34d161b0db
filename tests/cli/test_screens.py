"""What is printed at 80 columns is not cut, and what is too wide is broken where that harms nothing."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sparsify.cli import app
from sparsify.commands.bench import timing_table
from sparsify.commands.catalogue import folded
from sparsify.measure.latency import Timing
from sparsify.recipes.catalogue import RECIPES
from sparsify.text.catalogue import catalogue
from sparsify.text.structure import structured

VERBS = [str(command.name or command.callback.__name__) for command in app.registered_commands]


def screen(*words):
    """What a command prints on a terminal of 80 columns."""
    return CliRunner(env={"COLUMNS": "80", "TERM": "xterm"}).invoke(app, list(words)).output


def test_no_screen_is_wider_or_cut():
    asked = [(), *((verb, "--help") for verb in VERBS), ("passes",), ("recipes",)]
    asked += [("passes", item.name) for item in catalogue().passes]
    assert len(asked) > 50
    for words in asked:
        lines = screen(*words or ("--help",)).splitlines()
        assert lines, words
        for line in lines:
            assert len(line) <= 80, (words, line)
            assert "\u2026" not in line, (words, line)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_may_be_pasted_as_it_is_printed(recipe):
    printed = screen("recipes", recipe.name)
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert structured(printed.strip()) == structured(recipe.text)


def test_no_figure_of_bench_is_cut():
    row = {"tokens": 4096, "median_ms": 12345.67, "p10_ms": 11000.11, "p90_ms": 14000.99}
    ratios = {"ratio": 1.23, "ratio_low": 1.11, "ratio_high": 1.35}
    timings = [Timing(name, **row, **ratios) for name in ("dense", "sparse")]
    counts = {"dense": SimpleNamespace(multiply_adds=9.9e12, length=4096)}
    console = Console(file=io.StringIO(), width=80)
    console.print(timing_table(timings, counts, {"dense": 20 * 10**9, "sparse": 10**9}))
    printed = console.file.getvalue()
    assert "\u2026" not in printed
    shown = "".join(printed.split())
    for figure in ("11000.11-1400", "(1.11-1.35)", "9,900,000.0M", "20000.00MB"):
        assert figure in shown


def test_where_a_line_is_broken():
    assert folded("short", 10) == ["short"]
    assert folded("  one two three four", 12) == ["  one two", "      three", "      four"]
    assert folded("  f(x) -> g(x)     x [in]   here", 25) == [
        "  f(x) -> g(x)     x [in]",
        "      here",
    ]
    assert folded("  f(x) -> g(x)     x [in]", 20) == ["  f(x) -> g(x)", "      x [in]"]
    assert folded("wide" * 5, 10) == ["wide" * 5]
