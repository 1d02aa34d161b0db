"""What crosses a cut, batch by batch, in memory or on disk."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from sparsify import ranks
from sparsify.disk.files import new_file, new_folder
from sparsify.ir.run.stages import Values


class Activations:
    """The values of every batch at the present cut.

    With a folder they lie there, one file a batch, and memory holds one batch; without one in memory, that
    of the CPU.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._held: dict[int, Values] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def __setitem__(self, batch: int, values: Values) -> None:
        """Keep a batch."""
        values = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        if self.folder is None:
            self._held[batch] = values
        else:
            _save(values, self.folder / _name(batch))

    def __getitem__(self, batch: int) -> Values:
        """The values of a batch."""
        return self._held[batch] if self.folder is None else _load(self.folder / _name(batch))

    def store(self, folder: Path, batches: Iterable[int]) -> None:
        """Copy the batches of every rank into a new folder, which is there whole or not at all."""
        with _common_folder(folder) as temporary:
            for batch in batches:
                if self.folder is None:
                    _save(self._held[batch], temporary / _name(batch))
                else:
                    # A link: files are replaced, never written into.
                    os.link(self.folder / _name(batch), temporary / _name(batch))

    def restore(self, folder: Path, batches: Iterable[int]) -> None:
        """Take batches over from what `store` wrote, with however many ranks."""
        for batch in batches:
            self[batch] = _load(folder / _name(batch))

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def _common_folder(folder: Path) -> Iterator[Path]:
    """As `new_folder`, one for all ranks, which leave the block together."""
    with contextlib.ExitStack() as held:
        made = (
            held.enter_context(new_folder(folder, overwrite=True)) if ranks.is_first() else folder
        )
        yield ranks.gathered(made)[0]
        ranks.gathered(None)


def _name(batch: int) -> str:
    return f"{batch:06d}.pt"


def _save(values: Values, path: Path) -> None:
    # A view of a larger tensor would be written with all of it.
    owned = {k: v.clone() if _is_part(v) else v for k, v in values.items()}
    with new_file(path) as temporary:
        torch.save(owned, temporary)


def _is_part(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() > value.nbytes


def _load(path: Path) -> Values:
    values: Values = torch.load(path, weights_only=True)
    return values
