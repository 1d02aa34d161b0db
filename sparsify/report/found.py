"""What a folder says of itself: formats with their figures, passes, training, and what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsify.describe.facts import FILE, Facts, read_facts
from sparsify.disk.files import folders, read_json
from sparsify.errors import DataError

Row = Mapping[str, Any]
PAGE = "report.html"
# Any of these makes a folder one of a model.
_MODELS = (FILE, "program.json", "model.onnx", "config.json")


@dataclass(frozen=True)
class Format:
    """A model on disk: the name of its folder, its figures if it has them, the bytes of its files."""

    name: str
    path: Path
    facts: Facts | None
    bytes: int


@dataclass(frozen=True)
class Found:
    """Everything a page can tell about a folder; what was not recorded is empty.

    `passes` holds a row a pass, `training` rows of steps by the name of the training, `quality` a row a
    model, `bench` what `latency.to_json` makes, `run` what decided the result.
    """

    folder: Path
    formats: tuple[Format, ...]
    passes: Sequence[Row]
    training: Mapping[str, Sequence[Row]]
    quality: Mapping[str, Row]
    bench: Row
    run: Row

    @property
    def title(self) -> str:
        """The name of the folder, without where it lies on this machine."""
        return self.folder.resolve().name

    @property
    def facts(self) -> Facts | None:
        """The figures of the first format that has them."""
        return next((form.facts for form in self.formats if form.facts is not None), None)


def find(folder: Path) -> Found:
    """Read a folder that a run or an export has written, or any folder of a model.

    Raises DataError when it holds neither, or when a file is damaged.
    """
    found = Found(
        folder=folder,
        formats=tuple(map(_format, model_folders(folder))),
        passes=_read(folder, "report.json", list),
        training=_training(folder),
        quality=_read(folder, "eval.json", dict),
        bench=_read(folder, "bench.json", dict),
        run=_read(folder, "run.json", dict),
    )
    if not (found.formats or found.passes):
        raise DataError(f"'{folder}' holds no run and no model{_elsewhere(folder)}")
    return found


def model_folders(folder: Path) -> list[Path]:
    """A folder and those in it that hold a model, hidden ones left out."""
    places = (folder, *folders(folder))
    return [place for place in places if any((place / name).is_file() for name in _MODELS)]


def _format(place: Path) -> Format:
    files = [path for path in place.iterdir() if path.is_file() and path.name != PAGE]
    size = sum(path.stat().st_size for path in files)
    return Format(place.resolve().name, place, read_facts(place), size)


def _elsewhere(folder: Path) -> str:
    """A hint at the folders in it that a page can be made of."""
    inner = folders(folder)
    names = [path.name for path in inner if (path / "report.json").is_file() or model_folders(path)]
    return f"; name one of those in it: {', '.join(names)}" if names else ""


def _training(folder: Path) -> dict[str, list[Row]]:
    """The rows of `train.json`, or of a mapping in it from names to rows."""
    found = _read(folder, "train.json", (list, dict))
    runs = {"train": found} if isinstance(found, list) else found
    return {str(name): steps for name, steps in runs.items() if steps}


def _read(folder: Path, name: str, kind: Any) -> Any:
    """What a JSON file holds, an empty value where there is none; DataError when it is of another kind."""
    path = folder / name
    if not path.is_file():
        return kind() if isinstance(kind, type) else kind[-1]()
    value = read_json(path)
    if not isinstance(value, kind):
        raise DataError(f"'{path}' is not a file of a run: it holds a {type(value).__name__}")
    return value
