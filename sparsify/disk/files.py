"""Files and folders that appear whole or not at all, and what a kill left of them.

What is being written has a hidden name beside its place, `.NAME-xxxxxxxx.partial`, and takes the place
when it is whole. Where two folders cannot be exchanged in one step, the old one is called
`.NAME-xxxxxxxx.before` in between. `recover` knows both names and nothing else.
"""

import contextlib
import ctypes
import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sparsify.errors import DataError

_LARGEST = 1 << 28  # bytes of a JSON file
ABOUT = "sparsify.json"  # beside an exported model
MOST_TOKENS = "most_tokens"  # an entry there
WORK = ".resume"  # in the folder of a run: what it needs to go on
TOKENS = ".tokens"  # there as well: its data, tokenised
_PARTIAL, _BEFORE = ".partial", ".before"
_OURS = re.compile(r"\.(?P<name>.+)-[0-9a-f]{8}(?P<kind>\.partial|\.before)")
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE


def require_free(
    folder: Path, *, overwrite: bool, advice: str = "choose another or give --overwrite"
) -> None:
    """Refuse a folder that already holds something, unless it may be replaced; DataError with advice."""
    if folder.is_file():
        raise DataError(f"'{folder}' is a file; name a folder to write into")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise DataError(f"the folder '{folder}' is not empty; {advice}")


def folder_bytes(folder: Path) -> int:
    """The bytes of all files in a folder and below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def new_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends without an error.

    What stood at `folder` stays untouched until then. Raises DataError when it may not be replaced, or
    when the disk refuses a file.
    """
    require_free(folder, overwrite=overwrite)
    place = folder.resolve()  # of a link, what it leads to
    temporary = partial_name(place)
    try:
        with refusals(folder, temporary):
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
            os.chmod(temporary, 0o755)
            _take_place(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; the file written there takes its place when the block ends well.

    Raises DataError when the disk refuses it; what stood there then stays.
    """
    place = path.resolve()
    temporary = partial_name(place)
    try:
        with refusals(path, temporary):
            yield temporary
            temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def forget(folder: Path) -> None:
    """Remove a folder so that a kill leaves it whole or nothing under its name; DataError."""
    if not folder.is_dir():
        return
    gone = partial_name(folder)
    with refusals(folder, gone):
        folder.rename(gone)
        shutil.rmtree(gone)


def recover(folder: Path) -> None:
    """Clean up what kills left of a folder, in it, and in the work of a run; nobody else may write there.

    What is partial goes; what was about to be replaced comes back where nothing took its place.
    """
    _recover(folder.parent, {folder.name})
    _recover(folder)
    for place, _, _ in os.walk(folder / WORK):
        _recover(Path(place))


def _recover(parent: Path, names: set[str] | None = None) -> None:
    """The same for the entries of one folder, or those of some names."""
    # A folder that is not to be read or changed has other errors.
    with contextlib.suppress(OSError):
        for path in sorted(parent.iterdir()):
            found = _OURS.fullmatch(path.name)
            if found is None or (names is not None and found["name"] not in names):
                continue
            place = parent / found["name"]
            if found["kind"] == _BEFORE and not (place.is_dir() and any(place.iterdir())):
                path.rename(place)
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, in order; hidden ones are nobody's result."""
    inner = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in inner if path.is_dir() and not path.name.startswith(".")]


def partial_name(path: Path) -> Path:
    """A hidden name beside a path for what is being written; `recover` knows it."""
    return path.with_name(f".{path.name}-{secrets.token_hex(4)}{_PARTIAL}")


def _take_place(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what stood there goes only when that has worked."""
    if not (folder.exists() and any(folder.iterdir())):
        new.rename(folder)
    elif not _exchange(new, folder):
        old = new.with_suffix(_BEFORE)
        folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return (
        rename is not None
        and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0
    )


@contextlib.contextmanager
def refusals(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """What the disk refuses, whoever asked it, as one DataError that names `path`."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _reason(error, temporary or path)
        if reason is None:
            raise
        raise DataError(f"could not write '{path}': {reason}") from error


def _reason(error: Exception, temporary: Path) -> str | None:
    """Why the disk refused, with what was written and what is free if it is full; None for other errors."""
    number = None
    if isinstance(error, OSError):
        number, said = error.errno, error.strerror or str(error)
    elif isinstance(error, SafetensorError):
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            return None
        number = int(code[1])
        said = os.strerror(number)
    elif "inline_container" in str(error):  # torch.save tells no reason
        said = "the disk took only a part of it"
    else:
        return None
    if number in (errno.ENOSPC, errno.EDQUOT) or not isinstance(error, OSError):
        said = f"with {megabytes(_size(temporary))} written and {_free(temporary)} free: {said}"
    return said


def _size(path: Path) -> int:
    inner = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in inner if file.is_file())


def _free(path: Path) -> str:
    place = next(parent for parent in path.parents if parent.exists())
    return megabytes(shutil.disk_usage(place).free)


def megabytes(size: int) -> str:
    """A number of bytes, to read."""
    return f"{size / 1e6:,.1f} MB"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file through a temporary name; keys in the given order."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file through a temporary name, so that it is whole or as it was before; DataError."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def notes(folder: Path) -> list[str]:
    """What an export wrote for whoever opens its folder."""
    path = folder / ABOUT
    found = read_mapping(path).get("notes", []) if path.is_file() else []
    return [str(note) for note in found] if isinstance(found, list) else []


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


def read_mapping(path: Path) -> dict[str, Any]:
    """The value of a JSON file that holds a mapping; DataError for any other value, and as `read_json`."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"'{path}' is damaged or not ours: it holds a {type(value).__name__}")
    return value


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while the entries of a JSON file are taken into a DataError that names it."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"'{path}' is damaged or not ours: {error!r}") from error


def require_file(path: Path) -> None:
    """Refuse what is no plain file: reading a pipe or a device may never end.

    Raises DataError, and FileNotFoundError when nothing is there.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"'{path}' is no plain file")


def require_files(folder: Path) -> None:
    """Refuse a folder that holds pipes or devices, before other libraries read it; DataError."""
    for path in folder.iterdir():
        if path.exists() and not path.is_file() and not path.is_dir():
            raise DataError(f"'{path}' is no plain file")
