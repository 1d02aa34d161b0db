"""Progress in the terminal: a bar with the time left, a spinner with the time so far where none is known."""

import contextlib
import logging
import time
from collections.abc import Iterator
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from sparsify.commands.loudness import console as shared


class Bar:
    """A progress bar with the newest figures; shows nothing when the console is no terminal."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description:>14}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Time(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: int | None = None

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def start(self, title: str, total: int | None) -> None:
        """Replace the bar by a new one, which only moves where the total is None."""
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._task = self._bar.add_task(title, total=total, figures="")

    def advance(self, **figures: float) -> None:
        """One step further, with the figures beside the bar."""
        if self._task is not None:
            shown = "  ".join(
                # Of each domain there are some, and there may be many.
                f"{key} {value:.4g}"
                for key, value in figures.items()
                if key != "step" and "." not in key
            )
            self._bar.update(self._bar.task_ids[-1], advance=1, figures=shown)

    def watch(self, done: int, total: int) -> None:
        """So many steps of so many, for those who count themselves."""
        if self._task is not None:
            self._bar.update(self._bar.task_ids[-1], completed=done, total=total)

    def rename(self, title: str) -> None:
        """Another title, the bar going on."""
        if self._task is not None:
            self._bar.update(self._bar.task_ids[-1], description=title)


@contextlib.contextmanager
def counted(title: str, console: Console = shared) -> Iterator[Bar]:
    """As `step`, for a block that says to the bar how far it is."""
    started = time.perf_counter()
    with Bar(console) as bar:
        bar.start(title, None)
        yield bar
    _log(title, started)


@contextlib.contextmanager
def step(title: str, console: Console = shared) -> Iterator[None]:
    """A spinner with the seconds so far while the block runs; what it took goes into the log."""
    started = time.perf_counter()
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), _Time())
    shown = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        progress.add_task(title, total=None)
        yield
    _log(title, started)


def _log(title: str, started: float) -> None:
    logging.getLogger("sparsify").info(f"{title}: {time.perf_counter() - started:.2f} s")


class _Time(ProgressColumn):
    """The time left where there is a total, else the seconds so far."""

    def __init__(self) -> None:
        super().__init__()
        self._left = TimeRemainingColumn()

    def render(self, task: Task) -> Text:
        """Of one bar."""
        if task.total is None:
            return Text(f"{task.elapsed or 0:.0f} s", style="progress.elapsed")
        return self._left.render(task)
