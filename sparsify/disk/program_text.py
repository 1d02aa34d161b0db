"""The text saved beside a program: read without the program, while it is known to be its own."""

import re
from pathlib import Path

from sparsify.disk.digests import of_json, of_text
from sparsify.disk.files import read_mapping, require_file
from sparsify.errors import DataError, reason_of

DOCUMENT, TEXT = "program.json", "program.txt"
_HEADER = re.compile(r"program (?P<model>\S*) features \{(?P<features>[\w.,\- ]*)\}", re.A)


def text_of(path: Path) -> str | None:
    """The text of a program: of a file that a dump has written, or of a folder that holds a saved program.

    None where there is none, or the document beside it does not know it: then the program must be loaded.
    Raises DataError for a text file that is no program, and a saved text that was changed.
    """
    if path.suffix == ".txt" and path.is_file():
        text = _read(path)
        if _HEADER.match(text) is None:
            raise DataError(f"'{path}' is no program as text, which '--dump' writes; name a model")
        return text
    for place in (path, path / "safetensors"):
        if (place / DOCUMENT).is_file():
            return _beside(place)
    return None


def head_of(text: str) -> tuple[str, list[str]]:
    """The model class and the features that the first line of a text names."""
    found = _HEADER.match(text)
    assert found is not None
    return found["model"], [word for word in found["features"].split(", ") if word]


def _beside(folder: Path) -> str | None:
    """The text in the folder of a saved program, held against the hashes of both; see `text_of`."""
    if not (folder / TEXT).is_file():
        return None
    about = read_mapping(folder / DOCUMENT)
    known = about.pop("hashes", None)
    if not isinstance(known, dict) or known.get(DOCUMENT) != of_json(about) or TEXT not in known:
        return None
    text = _read(folder / TEXT)
    if known[TEXT] != of_text(text) or _HEADER.match(text) is None:
        raise DataError(
            f"'{folder / TEXT}' is not what was written with the program; remove it, and the program "
            "itself is printed"
        )
    return text


def _read(path: Path) -> str:
    require_file(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is no text: {reason_of(error)}") from error
