"""Progress of long passes as a bar in the terminal."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """A progress bar with the newest figures; shows nothing when the console is no terminal."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description:>14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
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

    def start(self, title: str, total: int) -> None:
        """Replace the bar by a new one."""
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._task = self._bar.add_task(title, total=total, figures="")

    def advance(self, **figures: float) -> None:
        """One step further, with the figures beside the bar."""
        if self._task is not None:
            shown = "  ".join(
                f"{key} {value:.4g}" for key, value in figures.items() if key != "step"
            )
            self._bar.update(self._bar.task_ids[-1], advance=1, figures=shown)

    def advance_to(self, done: int) -> None:
        """So many steps from the beginning."""
        if self._task is not None:
            self._bar.update(self._bar.task_ids[-1], completed=done)

    def rename(self, title: str) -> None:
        """Another title, the bar going on."""
        if self._task is not None:
            self._bar.update(self._bar.task_ids[-1], description=title)
