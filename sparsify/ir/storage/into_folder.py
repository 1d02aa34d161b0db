"""Save a program where other files stay: each of its files replaces the one of its name."""

import shutil
from pathlib import Path

from sparsify.disk.files import partial_name, refusals
from sparsify.disk.locks import locked
from sparsify.ir.program import Program
from sparsify.ir.storage.folder import save, write


def save_into(program: Program, folder: Path) -> None:
    """Write a program into a folder, new or not; what else lies there stays.

    Raises DataError when the folder is a file, the disk refuses, or another process is writing there.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        save(program, folder)
        return
    temporary = partial_name(folder / "program")
    try:
        with locked(folder), refusals(folder, temporary):
            temporary.mkdir()
            write(program, temporary)
            for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
                place = folder / file.relative_to(temporary)
                place.parent.mkdir(parents=True, exist_ok=True)
                file.replace(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
