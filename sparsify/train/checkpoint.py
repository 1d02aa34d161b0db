"""Checkpoints inside a training run: accelerate's state (weights, moments, random numbers) plus the step."""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

from sparsify.disk.files import new_folder, read_mapping, reading, write_json

_Figures = dict[str, float]


def latest(scratch: Path) -> Path | None:
    """The newest whole checkpoint in a folder; None when there is none."""
    found = sorted(p for p in scratch.glob("step-*") if (p / "progress.json").is_file())
    return found[-1] if found else None


def store(accelerator: Accelerator, scratch: Path, step: int, history: list[_Figures]) -> None:
    """Keep the state after `step` steps and forget the one before; a kill leaves one of the two whole.

    Rank 0 writes; what it writes does not depend on the number of ranks.
    """
    before = latest(scratch)
    folder = scratch / f"step-{step:08d}"
    if accelerator.is_main_process:
        with new_folder(folder, overwrite=True) as temporary:
            with _unwrapped(accelerator):
                _quietly(accelerator.save_state, str(temporary))
            write_json(temporary / "progress.json", {"step": step, "history": history})
        if before is not None and before != folder:
            shutil.rmtree(before)
    accelerator.wait_for_everyone()


def restore(accelerator: Accelerator, folder: Path) -> tuple[int, list[_Figures]]:
    """Load a checkpoint into the prepared model and optimiser; the finished steps and their figures."""
    with _unwrapped(accelerator):
        _quietly(accelerator.load_state, str(folder))
    path = folder / "progress.json"
    progress = read_mapping(path)
    with reading(path):
        return int(progress["step"]), list(progress["history"])


@contextlib.contextmanager
def _unwrapped(accelerator: Accelerator) -> Iterator[None]:
    """The models as in one process, inside the block, so that any number of ranks reads what others wrote."""
    before = accelerator._models
    accelerator._models = [accelerator.unwrap_model(model) for model in before]
    try:
        yield
    finally:
        accelerator._models = before


def _quietly(call: object, folder: str) -> None:
    """Without accelerate's log lines, which would break the progress bar."""
    logger = logging.getLogger("accelerate")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        call(folder)  # type: ignore[operator]
    finally:
        logger.setLevel(level)
