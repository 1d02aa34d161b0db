"""One writer at a time: a lock of the system on the output folder itself.

The lock belongs to the open folder, not to a file in it: nothing is left lying around, a killed process holds
nothing, and every spelling of a path is the same folder.
"""

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import datetime
from functools import cache
from pathlib import Path

import psutil

from sparsify.disk.files import recover, require_free
from sparsify.errors import DataError

try:
    import fcntl
except ImportError:  # a system without these locks
    fcntl = None  # type: ignore[assignment]

_Key = tuple[int, int]  # device and inode of a folder
_HELD: ContextVar[frozenset[_Key]] = ContextVar("held", default=frozenset())


class InUse(DataError):
    """A folder that another process or thread is writing."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against everyone else who writes into it; first clean up what kills left there.

    It is made if need be, and taken away again if the block leaves it empty. A holder may ask again.
    Raises InUse when another holds it, DataError when it cannot be made or opened. Where the file system
    has no locks, one warning says so, and nothing is cleaned up.
    """
    require_free(folder, overwrite=True)  # what it holds is for the holder to ask
    place = folder.resolve()
    made = [path for path in (place, *place.parents) if not path.exists()]
    try:
        key, descriptor = _hold(place, folder)
    except BaseException:
        _remove_empty(made)
        raise
    token = _HELD.set(_HELD.get() | {key})
    try:
        yield
    finally:
        _HELD.reset(token)
        _remove_empty(made)  # while it is ours
        os.close(descriptor)


def _hold(place: Path, folder: Path) -> tuple[_Key, int]:
    """Open and lock a folder; again when it was replaced in between."""
    while True:
        try:
            place.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(place, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"could not open '{folder}': {error.strerror or error}") from error
        key = _key(os.fstat(descriptor))
        try:
            if key in _HELD.get():
                return key, descriptor
            if _lock(descriptor, key, folder):
                recover(place)
            if place.exists() and _key(place.stat()) == key:
                return key, descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, key: _Key, folder: Path) -> bool:
    """Whether the file system could lock it; InUse when another holds it."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InUse(
            f"'{folder}' is being written by {_holder(key)}; wait for it or choose another folder"
        ) from error
    except OSError as error:
        _warn(str(folder), error.strerror or str(error))
        return False
    return True


@cache
def _warn(folder: str, reason: str) -> None:
    logging.getLogger("sparsify").warning(
        f"the file system of '{folder}' has no locks ({reason}); see to it that nothing else writes there"
    )


def _holder(key: _Key) -> str:
    """The process that holds a lock, as far as the system tells."""
    with contextlib.suppress(OSError, psutil.Error):
        device = f"{os.major(key[0]):02x}:{os.minor(key[0]):02x}:{key[1]}"
        known = re.search(rf"FLOCK +\S+ +WRITE +(\d+) {device} ", Path("/proc/locks").read_text())
        if known is not None and int(known[1]) > 0:
            number = int(known[1])
            since = datetime.fromtimestamp(psutil.Process(number).create_time())
            return f"process {number}, started {since:%Y-%m-%d %H:%M:%S}"
    return "another process"


def _key(status: os.stat_result) -> _Key:
    return status.st_dev, status.st_ino


def _remove_empty(paths: list[Path]) -> None:
    """Take away the empty ones of the folders that were made, the innermost first."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.rmdir()
