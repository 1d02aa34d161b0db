"""Checkpoints inside a training run: accelerate's state (weights, moments, random numbers) plus the step."""

import logging
import shutil
from pathlib import Path

from accelerate import Accelerator

from sparsify.disk.files import new_folder, read_mapping, reading, write_json

_Figures = dict[str, float]


def latest(scratch: Path) -> Path | None:
    """The newest whole checkpoint in a folder; None when there is none."""
    found = sorted(p for p in scratch.glob("step-*") if (p / "progress.json").is_file())
    return found[-1] if found else None


def store(accelerator: Accelerator, scratch: Path, step: int, history: list[_Figures]) -> None:
    """Keep the state after `step` steps and forget the one before; a kill leaves one of the two whole."""
    before = latest(scratch)
    folder = scratch / f"step-{step:08d}"
    if accelerator.is_main_process:
        with new_folder(folder, overwrite=True) as temporary:
            _quietly(accelerator.save_state, str(temporary))
            write_json(temporary / "progress.json", {"step": step, "history": history})
        if before is not None and before != folder:
            shutil.rmtree(before)
    accelerator.wait_for_everyone()


def restore(accelerator: Accelerator, folder: Path) -> tuple[int, list[_Figures]]:
    """Load a checkpoint into the prepared model and optimiser; the finished steps and their figures."""
    _quietly(accelerator.load_state, str(folder))
    path = folder / "progress.json"
    progress = read_mapping(path)
    with reading(path):
        return int(progress["step"]), list(progress["history"])


def _quietly(call: object, folder: str) -> None:
    """Without accelerate's log lines, which would break the progress bar."""
    logger = logging.getLogger("accelerate")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        call(folder)  # type: ignore[operator]
    finally:
        logger.setLevel(level)
