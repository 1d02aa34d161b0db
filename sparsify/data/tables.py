"""Documents in rows: .jsonl, .csv, .tsv and .parquet, one a row, in a column by name."""

import csv
import importlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sparsify.data.files import COMPRESSED, read_chunks, read_lines, suffix_of
from sparsify.errors import DataError, reason_of

SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLES = (".jsonl", *SEPARATORS, ".parquet")
# Columns that may hold the text of a row where none is named, the first present wins.
COLUMNS = ("text", "sentence")
_LONGEST = 1 << 30  # characters of a field of a .csv file


def read_table(path: Path, column: str | None) -> Iterator[str]:
    """The documents of a table in order, of the column that is named or one of `COLUMNS`.

    Rows without a value are left out, but in .jsonl, where every row must have it. Raises DataError for a
    file that is no such table, has no such column, or holds something else than text in it.
    """
    suffix = suffix_of(path)
    if suffix == ".jsonl":
        return _json_texts(path, column or COLUMNS[0])
    if suffix in SEPARATORS:
        return _csv_texts(path, column, SEPARATORS[suffix])
    return _parquet_texts(path, column)


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Every row of a .jsonl file and where it stands; DataError with file and line."""
    # JSON strings may hold U+2028 raw, and only "\n" ends a row.
    for number, line in enumerate(read_lines(path), start=1):
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


def column_of(names: Iterable[str], column: str | None, where: str) -> str:
    """The column that is named, or the first of `COLUMNS` that is there; DataError where there is none."""
    present = list(names)
    for wanted in COLUMNS if column is None else (column,):
        if wanted in present:
            return wanted
    raise DataError(
        f"{where} has no column '{column or COLUMNS[0]}'; its columns are: {', '.join(present)}; "
        "name one behind '#', as in rows.csv#body"
    )


def strings(values: Iterable[Any], where: str) -> Iterator[str]:
    """The strings of a column, rows without a value left out; DataError for values of another type."""
    for number, value in enumerate(values, start=1):
        if value is not None and not isinstance(value, str):
            raise DataError(
                f"{where} holds a {type(value).__name__} in row {number}, where text is wanted; "
                "make it one string a row"
            )
        if value is not None:
            yield value


def extra(module: str, purpose: str) -> Any:
    """A module of a package that not everybody has; DataError says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise DataError(
            f"{purpose} needs the package '{package}'; run: pip install \"sparsify-fx[data]\""
        ) from error


def _json_texts(path: Path, column: str) -> Iterator[str]:
    for where, row in json_rows(path):
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            lacks = isinstance(row, dict) and column not in row
            advice = f"; its fields are: {', '.join(row)}" if lacks else ""
            raise DataError(f"{where} has no string field '{column}'{advice}")
        yield row[column]


def _csv_texts(path: Path, column: str | None, separator: str) -> Iterator[str]:
    """The fields of a column; the first row names the columns, fields may be quoted and hold line ends."""
    before = csv.field_size_limit(_LONGEST)
    try:
        rows = csv.DictReader(read_lines(path), delimiter=separator, strict=True)
        name = column_of(rows.fieldnames or (), column, f"'{path}'")
        yield from (row[name] for row in rows if row[name])
    except csv.Error as error:
        raise DataError(f"'{path}' is not readable as {path.suffix}: {error}") from error
    finally:
        csv.field_size_limit(before)


def _parquet_texts(path: Path, column: str | None) -> Iterator[str]:
    parquet = extra("pyarrow.parquet", f"reading '{path}'")
    try:
        packed = path.suffix.lower() == COMPRESSED
        file = parquet.ParquetFile(io.BytesIO(b"".join(read_chunks(path))) if packed else path)
        name = column_of(file.schema_arrow.names, column, f"'{path}'")
        parts = file.iter_batches(columns=[name])
        values = (value for part in parts for value in part.column(0).to_pylist())
        yield from strings(values, f"column '{name}' of '{path}'")
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' is not a readable parquet file: {reason_of(error)}") from error
