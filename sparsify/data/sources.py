"""Where text comes from: files, folders, and the `datasets` library."""

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sparsify.data.files import read_utf8, suffix_of
from sparsify.data.tables import TABLES, column_of, extra, read_table, strings
from sparsify.errors import DataError, reason_of

PLAIN = (".txt", ".md", ".rst")
SUFFIXES = (*PLAIN, *TABLES)
_SPLITS = ("train", "validation", "test", "valid", "dev")


def documents(spec: str) -> Iterator[Iterable[str]]:
    """The documents that `spec` names, in a fixed order, each in pieces; they are read as they are asked for.

    `spec` is a text file (one document), a .jsonl, .csv, .tsv or .parquet file (one document a row), each
    also as .gz, a folder of those (read in the order of their paths), or `name[:config][:split]` for the
    `datasets` library, split `train` unless told. Behind it, `#COLUMN` names the column of the text, which is
    `text` or `sentence` else. Raises DataError when there is nothing of that name, or no text in it.
    """
    place, column = split_column(spec)
    path = Path(place).expanduser()
    found: Iterator[Iterable[str]]
    if path.is_dir():
        found = itertools.chain.from_iterable(_read_file(f, column) for f in _files_in(path))
    elif path.is_file():
        found = _read_file(path, column)
    elif suffix_of(path) in SUFFIXES or path.is_absolute() or place.startswith((".", "~")):
        raise DataError(
            f"the data '{place}' does not exist; give a file, a folder or a dataset name"
        )
    else:
        found = _read_dataset(place, column)
    empty = True

    def noted(document: Iterable[str]) -> Iterator[str]:
        nonlocal empty
        for piece in document:
            empty = empty and not piece.strip()
            yield piece

    for document in found:
        yield noted(document)
    if empty:
        raise DataError(f"the data '{spec}' holds no text")


def joined(specs: Sequence[str]) -> Iterator[str]:
    """The documents of all sources as one text, in pieces, a blank line between two documents."""
    begun = False
    for spec in specs:
        for document in documents(spec):
            if begun:
                yield "\n\n"
            begun = True
            yield from document


def files_of(spec: str) -> list[Path]:
    """The files that a source is read from; none for a dataset."""
    path = Path(split_column(spec)[0]).expanduser()
    if path.is_dir():
        return _files_in(path)
    return [path] if path.is_file() else []


def split_column(spec: str) -> tuple[str, str | None]:
    """A source and the column behind its last `#`, None where none is named or all of it is a path."""
    place, mark, column = spec.rpartition("#")
    if not (mark and place and column) or os.path.exists(os.path.expanduser(spec)):
        return spec, None
    return place, column


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
    files = sorted(file for file in folder.rglob("*") if suffix_of(file) in SUFFIXES)
    if not files:
        raise DataError(f"the folder '{folder}' has no {', '.join(SUFFIXES)} file")
    return files


def _read_file(path: Path, column: str | None) -> Iterator[Iterable[str]]:
    suffix = suffix_of(path)
    if suffix in TABLES:
        return ((text,) for text in read_table(path, column))
    if suffix not in PLAIN:
        raise DataError(f"'{path}' is not a kind of text we read; there are: {', '.join(SUFFIXES)}")
    if column is not None:
        raise DataError(
            f"'{path}' is plain text and has no column '{column}'; leave '#{column}' out"
        )
    return iter([read_utf8(path)])


def _read_dataset(spec: str, wanted: str | None) -> Iterator[Iterable[str]]:
    name, config, split = parse_dataset(spec)
    datasets = extra("datasets", f"no file or folder is called '{spec}', and loading a dataset")
    try:
        table = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the library raises its own, the hub's and the network's errors
        raise DataError(
            f"the dataset '{spec}' could not be loaded ({type(error).__name__}: "
            f"{reason_of(error)}); check the name and the network, or give a local file"
        ) from error
    column = column_of(table.column_names, wanted, f"the dataset '{spec}'")
    found = strings(table[column], f"column '{column}' of the dataset '{spec}'")
    return ((text,) for text in found)
