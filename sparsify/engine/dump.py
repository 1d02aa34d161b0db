"""The `--dump` folder: the text of the program after every pass, and the difference to the one before."""

from pathlib import Path

from sparsify.disk.files import refusals, require_free, write_text
from sparsify.ir.program import Program
from sparsify.ir.text import diff, header, to_text


class Dump:
    """Writes `00-trace.txt`, `01-insert-masks.txt`, `01-insert-masks.diff`, ... as passes finish."""

    def __init__(self, folder: Path, program: Program, done: int, *, resumes: bool) -> None:
        """Start a dump; `done` passes were finished by an earlier run, whose files stay.

        Raises DataError when the folder holds something, unless the run `resumes`.
        """
        require_free(folder, overwrite=resumes)
        with refusals(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._text = to_text(program)
        if done == 0:
            self._write("00-trace.txt", f"{header(program)}\n{self._text}")

    def step(self, number: int, name: str, program: Program) -> None:
        """Write the text and the difference of one finished pass."""
        text = to_text(program)
        stem = f"{number:02d}-{name}"
        self._write(f"{stem}.txt", f"{header(program)}\n{text}")
        self._write(f"{stem}.diff", diff(self._text, text, name) + "\n")
        self._text = text

    def _write(self, name: str, text: str) -> None:
        write_text(self._folder / name, text)
