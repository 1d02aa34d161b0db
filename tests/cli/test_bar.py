"""What a terminal shows while a step runs: the time left where there is a total, else the time so far."""

import io
import logging
import re

import pytest
from rich.console import Console

from sparsify.commands.bar import Bar, counted, step


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)


def test_a_step_without_a_total_shows_seconds(terminal, caplog):
    with caplog.at_level(logging.INFO, logger="sparsify"), step("tracing [x]", terminal):
        pass
    assert "tracing [x] 0 s" in terminal.file.getvalue()
    assert caplog.messages[0].startswith("tracing [x]: 0.0")


def test_a_bar_with_a_total_shows_steps_and_figures(terminal):
    with Bar(terminal) as bar:
        bar.start("train", 4)
        bar.advance(loss=2.5)
        bar.advance(loss=2.25)
        bar._bar.refresh()
        assert "2/4" in terminal.file.getvalue()
        assert "loss 2.25" in terminal.file.getvalue()
        bar.start("checking", None)
        bar._bar.refresh()
    assert terminal.file.getvalue().rsplit("checking", 1)[1].split("\n")[0].rstrip().endswith("0 s")


def test_a_step_that_counts_shows_how_much_and_the_time_left(terminal, caplog):
    with caplog.at_level(logging.INFO, logger="sparsify"), counted("tokenising", terminal) as bar:
        bar._bar.refresh()
        assert "tokenising" in terminal.file.getvalue()
        assert "0/?" in terminal.file.getvalue()
        for done in range(3):
            bar.watch(done, 4)
        bar._bar.refresh()
        last = terminal.file.getvalue().rsplit("tokenising", 1)[1]
        assert "2/4" in last
        assert re.search(r"2/4 0:00:\d\d", last)
    assert caplog.messages[0].startswith("tokenising: 0.0")


def test_what_is_no_terminal_shows_nothing():
    console = Console(file=io.StringIO(), force_terminal=False)
    with step("tracing", console):
        pass
    with Bar(console) as bar:
        bar.start("train", 4)
        bar.advance()
    assert console.file.getvalue() == ""
