"""Going on after an interruption: the program after the last finished pass, on disk."""

import shutil
from dataclasses import fields
from pathlib import Path

from sparsify.engine.report import Report, Row
from sparsify.errors import PipelineError
from sparsify.files import read_json, write_json
from sparsify.ir.program import Program
from sparsify.ir.store import load, save

Figures = dict[str, list[dict[str, float]]]


class Checkpoints:
    """A folder with `state.json`, the saved program it names, and one scratch folder for the pass at work.

    The program is written first and `state.json` replaced last, so that a kill at any moment leaves
    a state that was whole.
    """

    def __init__(self, folder: Path, pipeline: str, seed: int) -> None:
        self._folder = folder
        self._pipeline, self._seed = pipeline, seed
        folder.mkdir(parents=True, exist_ok=True)

    def restore(self, program: Program, report: Report, figures: Figures) -> tuple[Program, int]:
        """The program to go on with and the number of finished passes; fills rows and figures.

        Raises PipelineError when the folder belongs to another pipeline or seed.
        """
        if not (self._folder / "state.json").exists():
            return program, 0
        state = read_json(self._folder / "state.json")
        if state["pipeline"] != self._pipeline or state["seed"] != self._seed:
            raise PipelineError(
                f"'{self._folder}' keeps the state of another run (seed {state['seed']}, "
                f"'{state['pipeline']}'); remove it or choose another --out"
            )
        names = {field.name for field in fields(Row)}
        report.rows[:] = [
            Row(**{k: v for k, v in row.items() if k in names}) for row in state["rows"]
        ]
        figures.update(state["figures"])
        return load(self._folder / state["program"]), int(state["done"])

    def scratch(self, number: int) -> Path:
        """The folder in which pass `number` may keep its own state."""
        return self._folder / f"pass-{number:02d}"

    def store(self, program: Program, report: Report, done: int, figures: Figures) -> None:
        """Keep the program after `done` passes and forget the state before."""
        name = f"after-{done:02d}"
        save(program, self._folder / name, overwrite=True)
        write_json(
            self._folder / "state.json",
            {
                "pipeline": self._pipeline,
                "seed": self._seed,
                "done": done,
                "program": name,
                "rows": report.to_json(),
                "figures": figures,
            },
        )
        shutil.rmtree(self._folder / f"after-{done - 1:02d}", ignore_errors=True)
        shutil.rmtree(self.scratch(done), ignore_errors=True)

    def clear(self) -> None:
        """Forget everything: the run is finished and its result written."""
        shutil.rmtree(self._folder, ignore_errors=True)
