"""Checkpoints inside a training run: accelerate's state (weights, moments, random numbers) plus the step."""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

from sparsify import ranks
from sparsify.disk.files import new_folder, read_mapping, reading, write_json
from sparsify.errors import DataError
from sparsify.train.sharded_state import Parts, is_in_parts, load_parts, save_parts

_Figures = dict[str, float]


def latest(scratch: Path) -> Path | None:
    """The newest whole checkpoint in a folder; None when there is none."""
    found = sorted(p for p in scratch.glob("step-*") if (p / "progress.json").is_file())
    return found[-1] if found else None


def store(
    accelerator: Accelerator,
    scratch: Path,
    step: int,
    history: list[_Figures],
    parts: Parts,
) -> None:
    """Keep the state after `step` steps and forget the one before; a kill leaves one of the two whole.

    Rank 0 writes; what it writes does not depend on the number of ranks. Where `parts` are cut over these,
    each writes its own.
    """
    before = latest(scratch)
    folder = scratch / f"step-{step:08d}"
    with contextlib.ExitStack() as held:
        if accelerator.is_main_process:
            made = held.enter_context(new_folder(folder, overwrite=True))
            with _whole(accelerator, apart=parts.cut):
                _quietly(accelerator.save_state, str(made))
        if parts.cut:
            save_parts(parts, ranks.gathered(made if accelerator.is_main_process else folder)[0])
        if accelerator.is_main_process:
            write_json(made / "progress.json", {"step": step, "history": history})
    if accelerator.is_main_process and before is not None and before != folder:
        shutil.rmtree(before)
    accelerator.wait_for_everyone()


def restore(accelerator: Accelerator, folder: Path, parts: Parts) -> tuple[int, list[_Figures]]:
    """Load a checkpoint into the prepared model and optimiser; the finished steps and their figures.

    What ranks wrote in parts is read by any number of them, whether theirs are cut or whole. Raises
    DataError for cut ones where the checkpoint is that of whole parameters.
    """
    divided = is_in_parts(folder)
    if parts.cut and not divided:
        raise DataError(
            f"'{folder}' holds a training whose parameters were whole; go on without FSDP, or begin anew"
        )
    with _whole(accelerator, apart=divided):
        _quietly(accelerator.load_state, str(folder))
    if divided:
        load_parts(parts, folder)
    path = folder / "progress.json"
    progress = read_mapping(path)
    with reading(path):
        return int(progress["step"]), list(progress["history"])


@contextlib.contextmanager
def _whole(accelerator: Accelerator, *, apart: bool) -> Iterator[None]:
    """The models as in one process, inside the block, so that any number of ranks reads what others wrote.

    With `apart` there are none, nor optimisers: these are kept in parts.
    """
    before = accelerator._models, accelerator._optimizers
    if not apart:
        accelerator._models = [accelerator.unwrap_model(model) for model in before[0]]
    else:
        accelerator._models, accelerator._optimizers = [], []
    try:
        yield
    finally:
        accelerator._models, accelerator._optimizers = before


def _quietly(call: object, folder: str) -> None:
    """Without accelerate's log lines, which would break the progress bar."""
    logger = logging.getLogger("accelerate")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        call(folder)  # type: ignore[operator]
    finally:
        logger.setLevel(level)
