"""Rows of token ids behind each other, in memory or in files that are read in place.

    ids [n] int32, ends [rows] int64: row i is ids[ends[i - 1]:ends[i]]
    labels [n] int32, where there are any

Files lie in a folder of their own, which is there as a whole or not at all.
"""

import contextlib
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, overload

import torch
from torch import Tensor

from sparsify.disk.files import new_folder, write_json
from sparsify.errors import DataError

# Ids of a row, and its labels.
Row = tuple[Sequence[int], Sequence[int] | None]
_TYPES = {"ids": torch.int32, "ends": torch.int64, "labels": torch.int32}
_CODES = {torch.int32: "i", torch.int64: "q"}
_ABOUT = "about.json"


class Rows(Sequence[Mapping[str, Tensor]]):
    """Rows of `input_ids`, and of `labels` where there are any, each `[length of the row]` int64."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.ids, self._ends = columns["ids"], columns["ends"]
        self._labels = columns.get("labels")

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Tensor]]: ...
    def __getitem__(
        self, index: int | slice
    ) -> Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]:
        """A row, or some."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        start = int(self._ends[place - 1]) if place else 0
        part = slice(start, int(self._ends[place]))
        row = {"input_ids": self.ids[part].long()}
        return row if self._labels is None else {**row, "labels": self._labels[part].long()}


def gathered(rows: Iterable[Row], folder: Path | None = None) -> Rows:
    """Rows as they come, in memory, or in the files of a folder that is not there yet."""
    if folder is None:
        return Rows(_written(rows, None))
    with new_folder(folder) as work:
        sizes = {name: len(column) for name, column in _written(rows, work).items()}
        write_json(work / _ABOUT, sizes)
    return read_rows(folder)


def read_rows(folder: Path) -> Rows:
    """The rows in the files of a folder, which stay where they are; DataError where they are not whole."""
    try:
        sizes = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        return Rows(
            {name: _mapped(folder / name, size, _TYPES[name]) for name, size in sizes.items()}
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(
            f"the tokens in '{folder}' are not whole; delete that folder, and they are made again"
        ) from error


def _mapped(path: Path, size: int, dtype: torch.dtype) -> Tensor:
    if path.stat().st_size != size * dtype.itemsize:
        raise ValueError(f"{path.name} is of another size")
    if not size:
        return torch.empty(0, dtype=dtype)
    return torch.from_file(str(path), shared=False, size=size, dtype=dtype)


def _written(rows: Iterable[Row], folder: Path | None) -> dict[str, Tensor]:
    """The columns of rows; what was written to files is a tensor of that size without numbers."""
    count = 0
    with contextlib.ExitStack() as files:
        columns: dict[str, _Column] = {}

        def add(name: str, numbers: Sequence[int]) -> None:
            if name not in columns:
                file = None if folder is None else files.enter_context((folder / name).open("wb"))
                columns[name] = _Column(_TYPES[name], file)
            columns[name].add(numbers)

        for ids, labels in rows:
            count += len(ids)
            add("ids", ids)
            add("ends", [count])
            if labels is not None:
                add("labels", labels)
        for name in ("ids", "ends"):
            add(name, [])
    return {name: column.tensor() for name, column in columns.items()}


class _Column:
    """Numbers that are added at the end, in memory or in a file."""

    def __init__(self, dtype: torch.dtype, file: BinaryIO | None) -> None:
        self._dtype, self._file = dtype, file
        self._held = array(_CODES[dtype])
        self._count = 0

    def add(self, numbers: Sequence[int]) -> None:
        self._held.extend(numbers)
        self._count += len(numbers)
        if self._file is not None:
            self._held.tofile(self._file)
            del self._held[:]

    def tensor(self) -> Tensor:
        if self._file is not None or not self._count:
            device = "cpu" if self._file is None else "meta"
            return torch.empty(self._count, dtype=self._dtype, device=device)
        return torch.frombuffer(self._held, dtype=self._dtype)
