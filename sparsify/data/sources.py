"""Where text comes from: files, folders, and the `datasets` library."""

import gzip
import importlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sparsify.errors import DataError, reason_of

PLAIN = (".txt", ".md", ".rst")
SUFFIXES = (*PLAIN, ".jsonl", ".parquet")
COMPRESSED = ".gz"
# Columns that may hold the text of a row, the first present wins.
COLUMNS = ("text", "sentence")
_SPLITS = ("train", "validation", "test", "valid", "dev")


def read_texts(spec: str) -> list[str]:
    """The documents that `spec` names, in a fixed order.

    `spec` is a text file (one document), a .jsonl or .parquet file (one document a row), text and .jsonl
    also as .gz, a folder of those (read in the order of their paths), or `name[:config][:split]` for the
    `datasets` library, split `train` unless told.
    Raises DataError when there is nothing of that name, or no text in it.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        texts = [text for file in _files_in(path) for text in _read_file(file)]
    elif path.is_file():
        texts = _read_file(path)
    elif _suffix(path) in SUFFIXES or path.is_absolute() or spec.startswith((".", "~")):
        raise DataError(
            f"the data '{spec}' does not exist; give a file, a folder or a dataset name"
        )
    else:
        texts = _read_dataset(spec)
    if not any(text.strip() for text in texts):
        raise DataError(f"the data '{spec}' holds no text")
    return texts


def parse_dataset(spec: str) -> tuple[str, str | None, str]:
    """Name, config and split of `name[:config][:split]`; a lone second word may be either.

    `wikitext:wikitext-2-raw-v1:test`, `imdb:test` and `imdb` are all understood.
    """
    # A slice such as train[:10%] keeps its colon.
    name, *rest = re.split(r":(?![^\[]*\])", spec)
    if not name or len(rest) > 2:
        raise DataError(f"'{spec}' is no dataset; the form is name[:config][:split]")
    if len(rest) == 2:
        return name, rest[0] or None, rest[1] or "train"
    if not rest or not rest[0]:
        return name, None, "train"
    word = rest[0]
    if word.split("[")[0] in _SPLITS:
        return name, None, word
    return name, word, "train"


def _files_in(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if _suffix(file) in SUFFIXES)
    if not files:
        raise DataError(f"the folder '{folder}' has no {', '.join(SUFFIXES)} file")
    return files


def _suffix(path: Path) -> str:
    """What a file holds by its name, whether it is compressed or not."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == COMPRESSED else suffix


def _read_file(path: Path) -> list[str]:
    suffix = _suffix(path)
    if suffix in PLAIN:
        return [read_utf8(path)]
    if suffix == ".jsonl":
        return list(_json_texts(path))
    if suffix == ".parquet":
        return _parquet_rows(path)
    raise DataError(f"'{path}' is not a kind of text we read; there are: {', '.join(SUFFIXES)}")


def read_utf8(path: Path) -> str:
    """The text of a file, decompressed where its name ends with .gz, a byte order mark at its start left out.

    Raises DataError unless it is UTF-8.
    """
    content = path.read_bytes()
    if path.suffix.lower() == COMPRESSED:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"'{path}' cannot be decompressed: {reason_of(error)}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"'{path}' is not UTF-8 text (byte {error.start}, line {line}); convert it first"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Every row of a .jsonl file and where it stands; DataError with file and line."""
    # Not splitlines(): JSON strings may hold U+2028 raw, and only "\n" ends a row.
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"'{path}' line {number}"
        try:
            row = json.loads(line)
            if "\\u" in line:  # only an escape can spell half a pair of surrogates
                json.dumps(row, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is not JSON: {error.msg}") from error
        except RecursionError as error:
            raise DataError(f"{where} is nested too deeply") from error
        except ValueError as error:  # a number of too many digits, or half a pair of surrogates
            raise DataError(f"{where} cannot be read: {reason_of(error)}") from error
        yield where, row


def _json_texts(path: Path) -> Iterator[str]:
    for where, row in json_rows(path):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise DataError(f"{where} has no string field 'text'")
        yield row["text"]


def _parquet_rows(path: Path) -> list[str]:
    parquet = _extra("pyarrow.parquet", f"reading '{path}'")
    try:
        file = parquet.ParquetFile(path)
        column = _column(file.schema_arrow.names, f"'{path}'")
        values = file.read(columns=[column]).column(column).to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' is not a readable parquet file: {reason_of(error)}") from error
    return _strings(values, f"column '{column}' of '{path}'")


def _read_dataset(spec: str) -> list[str]:
    name, config, split = parse_dataset(spec)
    datasets = _extra("datasets", f"no file or folder is called '{spec}', and loading a dataset")
    try:
        table = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the library raises its own, the hub's and the network's errors
        raise DataError(
            f"the dataset '{spec}' could not be loaded ({type(error).__name__}: "
            f"{reason_of(error)}); check the name and the network, or give a local file"
        ) from error
    column = _column(table.column_names, f"the dataset '{spec}'")
    return _strings(table[column], f"column '{column}' of the dataset '{spec}'")


def _column(names: Iterable[str], where: str) -> str:
    present = list(names)
    for column in COLUMNS:
        if column in present:
            return column
    raise DataError(f"{where} has no column 'text'; its columns are: {', '.join(present)}")


def _strings(values: Iterable[Any], where: str) -> list[str]:
    """The strings of a column, rows without a value left out; DataError for values of another type."""
    found = []
    for number, value in enumerate(values, start=1):
        if value is not None and not isinstance(value, str):
            raise DataError(
                f"{where} holds a {type(value).__name__} in row {number}, where text is wanted; "
                "make it one string a row"
            )
        if value is not None:
            found.append(value)
    return found


def _extra(module: str, purpose: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise DataError(
            f"{purpose} needs the package '{package}'; run: pip install \"sparsify-fx[data]\""
        ) from error
