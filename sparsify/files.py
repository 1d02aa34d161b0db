"""Files and folders that appear whole or not at all."""

import contextlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsify.errors import DataError

_LARGEST = 1 << 28  # bytes of a JSON file
ABOUT = "sparsify.json"  # beside an exported model


def require_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that already holds something, unless it may be replaced; DataError."""
    if folder.is_file():
        raise DataError(f"'{folder}' is a file; name a folder to write into")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise DataError(f"the folder '{folder}' is not empty; choose another or give --overwrite")


@contextlib.contextmanager
def new_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends without an error.

    What stood at `folder` stays untouched until then. Raises DataError when it may not be replaced, or
    when the disk refuses a file.
    """
    require_free(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        _take_place(temporary, folder)
    except OSError as error:
        raise DataError(f"could not write '{folder}': {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what stood there goes only when that has worked."""
    old = new.with_name(new.name + "-old")
    replaced = folder.exists()
    if replaced:
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if replaced:
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file through a temporary name; keys in the given order."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file through a temporary name, so that it is whole or as it was before."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def notes(folder: Path) -> list[str]:
    """What an export wrote for whoever opens its folder."""
    path = folder / ABOUT
    found: list[str] = read_json(path).get("notes", []) if path.is_file() else []
    return found


def read_json(path: Path) -> Any:
    """The value of a JSON file; DataError when it is missing, damaged, too large or no file at all."""
    try:
        require_file(path)
        size = path.stat().st_size
        if size > _LARGEST:
            raise DataError(f"'{path}' has {size:,} bytes; no file of its kind has so many")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"'{path.parent}' has no {path.name}") from error
    except RecursionError as error:
        raise DataError(f"'{path}' is damaged or not ours: it nests too deeply") from error
    except (ValueError, OSError) as error:
        raise DataError(f"'{path}' is damaged or not ours: {error}") from error


def require_file(path: Path) -> None:
    """Refuse what is no plain file: reading a pipe or a device may never end.

    Raises DataError, and FileNotFoundError when nothing is there.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"'{path}' is no plain file")


def require_files(folder: Path) -> None:
    """Refuse a folder that holds pipes or devices, before other libraries read it; DataError."""
    for entry in os.scandir(folder):
        if not entry.is_file() and not entry.is_dir() and os.path.exists(entry.path):
            raise DataError(f"'{entry.path}' is no plain file")
