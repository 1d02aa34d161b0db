"""`--track`: the figures of a run, as they come, where people watch training.

Everything goes through accelerate's trackers, and a kind that it has not, `jsonl`: one JSON object a line.
Files lie in `OUT/.resume/track` as long as the run lasts, then in `OUT/track`.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import (
    LOGGER_TYPE_TO_CLASS,
    GeneralTracker,
    get_available_trackers,
    on_main_process,
)

from sparsify.engine.contract import Progress
from sparsify.engine.report import Report, Row
from sparsify.errors import OptionError, nearest

TRACK = "track"  # the folder of their files
_JSONL, _LATER = "jsonl", ("tensorboard", "wandb", "mlflow")
# The numbers of a row of the report.
_NUMBERS = ("places", "nodes", "parameters", "zeros", "seconds", "checking", "move")


class Jsonl(GeneralTracker):  # type: ignore[misc]
    """Figures as lines of JSON in `figures.jsonl`; a resumed run appends."""

    name = _JSONL
    requires_logging_directory = True

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path = folder / "figures.jsonl"

    @property
    def tracker(self) -> Path:
        """The file."""
        return self._path

    @on_main_process  # type: ignore[untyped-decorator]
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Write what the run was told."""
        self._append(values)

    @on_main_process  # type: ignore[untyped-decorator]
    def log(self, values: dict[str, Any], step: int | None = None, **others: Any) -> None:
        """Write the figures of a step."""
        self._append({"step": step, **values})

    def _append(self, values: Mapping[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, ensure_ascii=False) + "\n")


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that nobody knows or whose package is missing; OptionError."""
    there = {str(name) for name in get_available_trackers()} | {_JSONL}
    for name in names:
        if name not in (_JSONL, *_LATER):
            raise OptionError(f"--track {name} is unknown{nearest(name, (_JSONL, *_LATER))}")
        if name not in there:
            raise OptionError(
                f"--track {name} needs the package '{name}'; run: pip install 'sparsify-fx[{name}]'"
            )


@contextlib.contextmanager
def tracking(
    names: Sequence[str], folder: Path, told: Mapping[str, Any], device: str, watched: "Tracked"
) -> Iterator[None]:
    """Send what `watched` sees to trackers by name, inside the block; `told` says of which run."""
    if not names:
        yield
        return
    # Asked of the process by every tracker: before it, the first one would take the first GPU.
    PartialState(cpu=device == "cpu")
    made = [_made(name, folder, str(told["model"])) for name in names]
    config = {key: value for key, value in told.items() if value is not None}
    for each in made:
        each.start()
        each.store_init_configuration(config)
    watched.trackers = made
    try:
        yield
        watched.rows_so_far()
    finally:
        for each in made:
            each.finish()


def _made(name: str, folder: Path, title: str) -> Any:
    if name == _JSONL:
        return Jsonl(folder)
    kind = LOGGER_TYPE_TO_CLASS[name]
    run = Path(title).name
    return kind(run, folder) if kind.requires_logging_directory else kind(run)


class Tracked:
    """A progress that hands the figures of steps, and the rows of the report, to trackers too.

    A step of training is counted from the start of the run, over all its passes; `before` are the figures of
    passes that are done.
    """

    def __init__(
        self, shown: Progress, report: Report, before: Mapping[str, Sequence[Mapping[str, float]]]
    ) -> None:
        self.trackers: Sequence[Any] = ()
        self._shown, self._report, self._before = shown, report, before
        self._title, self._done, self._step, self._rows = "", 0, 0, 0

    def start(self, title: str, total: int | None) -> None:
        """A new bar; what the pass before has reported is sent."""
        self._done = sum(len(rows) for rows in self._before.values())
        if not self._title:  # what a resumed run begins with was sent before
            self._step, self._rows = self._done, len(self._report.rows)
        self.rows_so_far()
        self._title = title
        self._shown.start(title, total)

    def advance(self, **figures: float) -> None:
        """One step further; figures that have a step are sent."""
        if "step" in figures:
            self._step = self._done + int(figures["step"])
            self._send({k: v for k, v in figures.items() if k != "step"}, self._title)
        self._shown.advance(**figures)

    def rename(self, title: str) -> None:
        """Another title for the bar that stands."""
        self._shown.rename(title)

    def rows_so_far(self) -> None:
        """Send the rows of the report that have come since the last time."""
        for row in self._report.rows[self._rows :]:
            self._send(_numbers(row), row.name)
        self._rows = len(self._report.rows)

    def _send(self, figures: Mapping[str, float], title: str) -> None:
        for each in self.trackers:
            each.log({f"{title}/{key}": value for key, value in figures.items()}, step=self._step)


def _numbers(row: Row) -> dict[str, float]:
    return {name: getattr(row, name) for name in _NUMBERS}
