"""Where text comes from: files, folders, and the `datasets` library."""

import importlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sparsify.errors import DataError

PLAIN = (".txt", ".md", ".rst")
SUFFIXES = (*PLAIN, ".jsonl", ".parquet")
# Columns that may hold the text of a row, the first present wins.
COLUMNS = ("text", "sentence")
_SPLITS = ("train", "validation", "test", "valid", "dev")


def read_texts(spec: str) -> list[str]:
    """The documents that `spec` names, in a fixed order.

    `spec` is a text file (one document), a .jsonl or .parquet file (one document a row), a folder
    of those (read in the order of their paths), or `name[:config][:split]` for the `datasets`
    library, split `train` unless told.
    Raises DataError when there is nothing of that name, or no text in it.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        texts = [text for file in _files_in(path) for text in _read_file(file)]
    elif path.is_file():
        texts = _read_file(path)
    elif path.suffix.lower() in SUFFIXES or path.is_absolute() or spec.startswith((".", "~")):
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
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"the folder '{folder}' has no {', '.join(SUFFIXES)} file")
    return files


def _read_file(path: Path) -> list[str]:
    suffix = path.suffix.lower()
    if suffix in PLAIN:
        return [_decode(path)]
    if suffix == ".jsonl":
        return list(_json_rows(path))
    if suffix == ".parquet":
        return _parquet_rows(path)
    raise DataError(f"'{path}' is not a kind of text we read; there are: {', '.join(SUFFIXES)}")


def _decode(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"'{path}' is not UTF-8 text (byte {error.start}); convert it first"
        ) from error


def _json_rows(path: Path) -> Iterator[str]:
    # Not splitlines(): JSON strings may hold U+2028 raw, and only "\n" ends a row.
    for number, line in enumerate(_decode(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"'{path}' line {number} is not JSON: {error.msg}") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise DataError(f"'{path}' line {number} has no string field 'text'")
        yield row["text"]


def _parquet_rows(path: Path) -> list[str]:
    parquet = _extra("pyarrow.parquet", f"reading '{path}'")
    try:
        file = parquet.ParquetFile(path)
        column = _column(file.schema_arrow.names, f"'{path}'")
        return _strings(file.read(columns=[column]).column(column).to_pylist())
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' is not a readable parquet file: {_first_line(error)}") from error


def _read_dataset(spec: str) -> list[str]:
    name, config, split = parse_dataset(spec)
    datasets = _extra("datasets", f"no file or folder is called '{spec}', and loading a dataset")
    try:
        table = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the library raises its own, the hub's and the network's errors
        raise DataError(
            f"the dataset '{spec}' could not be loaded ({type(error).__name__}: "
            f"{_first_line(error)}); check the name and the network, or give a local file"
        ) from error
    return _strings(table[_column(table.column_names, f"the dataset '{spec}'")])


def _column(names: Iterable[str], where: str) -> str:
    present = list(names)
    for column in COLUMNS:
        if column in present:
            return column
    raise DataError(f"{where} has no column 'text'; its columns are: {', '.join(present)}")


def _strings(values: Iterable[Any]) -> list[str]:
    return [str(value) for value in values if value is not None]


def _extra(module: str, purpose: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise DataError(
            f"{purpose} needs the package '{package}'; run: pip install \"sparsify-fx[data]\""
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
