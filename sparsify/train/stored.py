"""Logits of the dense twin on disk: the largest of each token, and all others as one more.

    log p_v = log_softmax(z / T)_v  for the `top` tokens v of largest logit;  p_rest = 1 - sum p_v

They are written once for each sequence, for all runs on the same data.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsify import ranks
from sparsify.data.sequences import Data
from sparsify.disk.files import megabytes, new_folder, write_json
from sparsify.errors import OptionError
from sparsify.ir.run.head import find_head
from sparsify.train.forward import Teacher
from sparsify.train.top_logits import TopLogits, beside, inputs_of, joined, top_logits

ABOUT = "logits.json"


class StoredLogits:
    """A folder of them: `ids`, `logs` and `rest` of every sequence in .npy files, and which are there.

    `about` says what they are of: anything else in the folder is refused (OptionError). They take
    `tokens (top (ids + 2) + 2)` bytes, ids of 2 or 4 bytes; most systems take the room only as it is written.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        ranks.by_first(lambda: _create(folder, about))
        held = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        self.about = held
        for key, value in about.items():
            # A twin that is not there is not asked.
            if value is not None and held.get(key) != value:
                raise OptionError(
                    f"the folder '{folder}' holds logits of another {key}: {held.get(key)}, not {value}; "
                    "name another folder"
                )
        names = ("ids", "logs", "rest", "there")
        self._ids, self._logs, self._rest, self._there = (
            np.load(folder / f"{name}.npy", mmap_mode="r+") for name in names
        )

    def missing(self, indices: Sequence[int]) -> list[int]:
        """Those of some sequences that are not stored, each once, in order."""
        return [index for index in sorted(set(indices)) if not self._there[index]]

    def put(self, index: int, found: TopLogits) -> None:
        """Store those of the first tokens of a sequence."""
        for part, value in zip((self._ids, self._logs, self._rest), found, strict=True):
            part[index, : len(value)] = value.numpy()
        self._there[index] = 1

    def get(self, indices: Sequence[int], length: int) -> TopLogits:
        """Those of the first `length` tokens of some sequences."""
        rows = list(indices)
        ids, logs, rest = (
            torch.from_numpy(np.asarray(part[rows, :length], dtype=kind))
            for part, kind in (
                (self._ids, np.int64),
                (self._logs, np.float32),
                (self._rest, np.float32),
            )
        )
        return TopLogits(ids, logs, rest)

    def flush(self) -> None:
        """Write what is in memory."""
        for part in (self._ids, self._logs, self._rest, self._there):
            part.flush()


def size_of(sequences: int, length: int, top: int, vocabulary: int) -> str:
    """What the logits of so many sequences take, in words."""
    entry = np.dtype(_id_type(vocabulary)).itemsize + 2
    return megabytes(sequences * length * (top * entry + 2))


def is_whole(folder: Path) -> bool:
    """Whether a folder holds the logits of every sequence."""
    if not (folder / ABOUT).is_file():
        return False
    return bool(np.load(folder / "there.npy", mmap_mode="r").all())


def fill(
    store: StoredLogits,
    twin: Teacher,
    data: Data,
    missing: Sequence[int],
    batch: int,
    told: Callable[[], None],
) -> None:
    """Store what is missing, of which each rank does a part; `told` is called after each batch."""
    mine = list(ranks.own(missing))
    for start in range(0, len(mine), batch):
        some = mine[start : start + batch]
        inputs = inputs_of(data.batch(some))
        top, temperature = store.about["top"], store.about["temperature"]
        found = joined([top_logits(z, top, temperature) for z in _logits(twin, inputs)])
        count = inputs["input_ids"].shape[1]
        for number, index in enumerate(some):
            store.put(index, found.rows(slice(number * count, (number + 1) * count)))
        store.flush()
        told()
    ranks.gathered(None)  # nobody reads what another has not written


@torch.no_grad()
def _logits(twin: Teacher, inputs: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """The twin's logits of all tokens of a batch, `[tokens, vocabulary]`, so many at a time as fit."""
    here = torch.device("cpu")
    if find_head(twin.program) is None:
        yield twin.outputs(inputs, here)[0].flatten(0, -2)
        return
    side = twin.side(inputs, here)
    for rows in side.chunks():
        yield side.head.after(side.product(rows))


class StoredData:
    """Data whose batches bring the stored logits of their tokens along."""

    def __init__(self, data: Data, store: StoredLogits) -> None:
        self._data, self._store = data, store

    @property
    def length(self) -> int:
        """Tokens in the longest sequence a batch may hold."""
        return self._data.length

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self._data)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch, and `twin_ids`, `twin_logs` `[b, T, top]` and `twin_rest` `[b, T]`."""
        batch = self._data.batch(indices)
        found = self._store.get(indices, batch["input_ids"].shape[1])
        return {**batch, **beside(found)}


def _id_type(vocabulary: int) -> type[np.generic]:
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32


def _create(folder: Path, about: Mapping[str, Any]) -> None:
    """An empty folder for them, where there is none yet."""
    if (folder / ABOUT).is_file():
        return
    shape = (about["sequences"], about["length"])
    wide = (*shape, about["top"])
    parts: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
        "ids": (wide, _id_type(about["vocabulary"])),
        "logs": (wide, np.float16),
        "rest": (shape, np.float16),
        "there": (shape[:1], np.uint8),
    }
    with new_folder(folder) as place:
        for name, (size, kind) in parts.items():
            np.lib.format.open_memmap(place / f"{name}.npy", mode="w+", dtype=kind, shape=size)
        write_json(place / ABOUT, dict(about))
