"""Which tasks a model is asked; light, so that the command line can name it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Suite:
    """Which tasks, and how they are asked.

    `names` are the harness's, or those of YAML files below the folder `path`, which go first; `data` is the
    folder that such files read from. `limit` takes the first items of each task, `shots` is the number of
    solved examples before an item (None: what the task says, mostly 0), `batch` the sequences at a time.
    """

    names: tuple[str, ...]
    path: Path | None = None
    data: Path | None = None
    limit: int | None = None
    shots: int | None = None
    batch: int = 8
