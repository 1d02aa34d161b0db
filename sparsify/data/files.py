"""Files of text by their names, compressed or not."""

import gzip
import zlib
from pathlib import Path

from sparsify.errors import DataError, reason_of

COMPRESSED = ".gz"


def suffix_of(path: Path) -> str:
    """What a file holds by its name, whether it is compressed or not."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == COMPRESSED else suffix


def read_bytes(path: Path) -> bytes:
    """What a file holds, decompressed where its name ends with .gz; DataError where that fails."""
    content = path.read_bytes()
    if path.suffix.lower() != COMPRESSED:
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"'{path}' cannot be decompressed: {reason_of(error)}") from error


def read_utf8(path: Path) -> str:
    """The text of a file, decompressed where its name ends with .gz, a byte order mark at its start left out.

    Raises DataError unless it is UTF-8.
    """
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"'{path}' is not UTF-8 text (byte {error.start}, line {line}); convert it first"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
