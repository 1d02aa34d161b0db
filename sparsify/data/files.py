"""Files of text by their names, compressed or not, read piece by piece."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from sparsify.errors import DataError, reason_of

COMPRESSED = ".gz"
_CHUNK = 1 << 20


def suffix_of(path: Path) -> str:
    """What a file holds by its name, whether it is compressed or not."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == COMPRESSED else suffix


def read_bytes(path: Path) -> Iterator[bytes]:
    """What a file holds as it lies on disk."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def read_chunks(path: Path) -> Iterator[bytes]:
    """What a file holds, decompressed where its name ends with .gz; DataError where that fails."""
    if path.suffix.lower() != COMPRESSED:
        yield from read_bytes(path)
        return
    try:
        with gzip.open(path) as packed:
            while chunk := packed.read(_CHUNK):
                yield chunk
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"'{path}' cannot be decompressed: {reason_of(error)}") from error


def read_utf8(path: Path) -> Iterator[str]:
    """The text of a file, decompressed where its name ends with .gz, a byte order mark at its start left out.

    Raises DataError unless it is UTF-8.
    """
    plain = codecs.getincrementaldecoder("utf-8-sig")()
    decoder = io.IncrementalNewlineDecoder(plain, translate=True)
    before = lines = 0
    try:
        for chunk in read_chunks(path):
            yield decoder.decode(chunk)
            before, lines = before + len(chunk), lines + chunk.count(b"\n")
        chunk = b""
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        whole = error.object  # what was left of the chunk before, and this one
        byte = before - (len(whole) - len(chunk)) + error.start
        line = lines + whole.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"'{path}' is not UTF-8 text (byte {byte}, line {line}); convert it first"
        ) from error


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file of text, each with its end; only a line feed ends one."""
    rest = ""
    for chunk in read_utf8(path):
        *whole, rest = (rest + chunk).split("\n")
        for line in whole:
            yield f"{line}\n"
    if rest:
        yield rest
