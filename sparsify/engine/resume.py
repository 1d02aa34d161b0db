"""Going on after an interruption: the program after the last finished pass, bound to its run by content."""

import shutil
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from sparsify import ranks
from sparsify.disk.files import read_mapping, reading, write_json
from sparsify.engine.contract import Context
from sparsify.engine.fingerprint import data_fingerprint, fingerprint
from sparsify.engine.report import Report, Row
from sparsify.errors import PipelineError
from sparsify.ir.program import Program
from sparsify.ir.storage.folder import load, save

Figures = dict[str, list[dict[str, float]]]
_IDENTITY, _STATE = "identity.json", "state.json"
_HASHES = ("weights", "data", "dense")  # nobody can read these; that they differ is what counts


class Checkpoints:
    """A folder with `state.json`, the saved program it names, and one scratch folder for the pass at work.

    The program is written first and `state.json` replaced last, so that a kill at any moment leaves
    a state that was whole. Of several ranks the first alone writes, and all must see what it wrote.
    Raises PipelineError when the folder belongs to another run.
    """

    def __init__(self, folder: Path, run: Mapping[str, str]) -> None:
        self._folder = folder
        ranks.by_first(lambda: bind(folder, run))

    def restore(self, program: Program, report: Report, figures: Figures) -> tuple[Program, int]:
        """The program to go on with and the number of finished passes; fills rows and figures.

        Raises PipelineError where a rank does not see the state that rank 0 sees.
        """
        there = (self._folder / _STATE).exists()
        if len(set(ranks.gathered(there))) > 1:
            raise PipelineError(
                f"some ranks see the state in '{self._folder}' and some do not; --out must lie in a folder "
                "that all machines share"
            )
        if not there:
            self._tidy("", 0)
            return program, 0
        path = self._folder / _STATE
        state, names = read_mapping(path), {field.name for field in fields(Row)}
        with reading(path):
            rows = [Row(**{k: v for k, v in row.items() if k in names}) for row in state["rows"]]
            kept_figures, done, name = dict(state["figures"]), int(state["done"]), state["program"]
            place = self._folder / Path(name).name
        report.rows[:] = rows
        figures.update(kept_figures)
        self._tidy(place.name, done)
        return load(place), done

    def scratch(self, number: int) -> Path:
        """The folder in which pass `number` may keep its own state."""
        return self._folder / f"pass-{number:02d}"

    def store(self, program: Program, report: Report, done: int, figures: Figures) -> None:
        """Keep the program after `done` passes and forget the state before."""
        if not ranks.is_first():
            return
        name = f"after-{done:02d}"
        save(program, self._folder / name, overwrite=True)
        write_json(
            self._folder / _STATE,
            {"done": done, "program": name, "rows": report.to_json(), "figures": figures},
        )
        self._tidy(name, done)

    def _tidy(self, name: str, done: int) -> None:
        """Remove the programs and the scratch of passes that a kill or a later state left behind."""
        if not ranks.is_first():
            return
        kept = {name, self.scratch(done + 1).name}
        for path in (*self._folder.glob("after-*"), *self._folder.glob("pass-*")):
            if path.name not in kept:
                shutil.rmtree(path)


def identity(pipeline: str, program: Program, context: Context) -> dict[str, str]:
    """What decides every bit of a run: texts as they are, weights and data as fingerprints."""
    dtypes = sorted({str(t.dtype) for _, t in program.tensors() if t.is_floating_point()})
    run = {
        "pipeline": pipeline,
        "seed": str(context.seed),
        "dtype": ", ".join(dtypes).replace("torch.", ""),
        "weights": fingerprint(program),
        "data": data_fingerprint(context.data),
        **surroundings(context.device),
    }
    return run if context.dense is None else {**run, "dense": fingerprint(context.dense)}


def surroundings(device: str) -> dict[str, str]:
    """What else decides the bits: the kind of device, and the versions."""
    try:
        ours = version("sparsify-fx")
    except PackageNotFoundError:  # run from its sources
        ours = "unknown"
    kind = device.partition(":")[0]
    return {"device": kind, "torch": torch.__version__, "sparsify": ours}


def bind(folder: Path, run: Mapping[str, str]) -> None:
    """Say in a folder whose state it keeps; PipelineError when it already says that it is another run's."""
    path = folder / _IDENTITY
    if path.is_file():
        differences = _differences(read_mapping(path), run)
        if differences:
            raise PipelineError(
                f"'{folder}' keeps the state of another run: {', '.join(differences)}; give the same, "
                "or remove it, or choose another folder"
            )
    elif (folder / _STATE).exists():
        raise PipelineError(
            f"'{folder}' keeps the state of an older version, which does not say of which run; "
            "remove it or choose another folder"
        )
    else:
        write_json(path, dict(run))


def kept(folder: Path) -> bool:
    """Whether a folder keeps anything that a run could go on from."""
    return (folder / _STATE).is_file() or any(folder.glob("pass-*/step-*/progress.json"))


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    found = []
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if old != new:
            hashed = key in _HASHES
            found.append(f"other {key}" if hashed else f"{key} was '{old}' and is '{new}'")
    return found
