"""What a streamed run is to do, and whether the folder it writes is free for it."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sparsify.data.spec import without_folders
from sparsify.disk.files import WORK, read_json, refusals, require_free, write_json
from sparsify.disk.locks import locked
from sparsify.errors import DataError, OptionError
from sparsify.ir.device import device_of
from sparsify.pretrained.origin import short_name
from sparsify.select.one_shot import OneShot
from sparsify.stream.places import DeviceMap


@dataclass(frozen=True)
class Job:
    """What to prune, how, from which data, and where the result goes.

    `samples` sequences of the data, `batch` at a time. `order` says what a linear sees pruned: all that comes
    before it, or with `layer` the layers before its own (two passes over the data, and sums for all
    linears of a layer at once). `on_disk` keeps what crosses a cut on disk
    rather than in memory. `dtype` is that of weights and activations; sums are float32. `device` is one
    device, `auto` or a device map (`Places`); what crosses a cut lies in the memory of the CPU.
    Raises OptionError for numbers and words that cannot be meant, and a device that this machine has not,
    DataError for a model in one file.
    """

    model: str
    how: OneShot
    out: Path
    samples: int = 128
    batch: int = 8
    seed: int = 0
    order: Literal["linear", "layer"] = "linear"
    dtype: str = "bfloat16"
    device: str | DeviceMap = "cpu"
    on_disk: bool = False
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    trust_remote_code: bool = False
    # What else decides the result, for `resume` to compare.
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.samples < 1 or self.batch < 1:
            raise OptionError("samples and batch must be at least 1")
        if self.order not in ("linear", "layer"):
            raise OptionError(f"order={self.order} is neither linear nor layer")
        if isinstance(self.device, str) and self.device != "auto":
            device_of(self.device)
        if Path(self.model).is_file():
            raise DataError(
                f"'{self.model}' is a file, and streaming reads a folder of safetensors; load it with "
                "sparsify.load_model and save model and tokenizer into one"
            )


def take(job: Job, held: contextlib.ExitStack, *, resume: bool) -> None:
    """Hold the job's folder against others as long as `held` is, and begin in it; InUse, or as `begin`."""
    held.enter_context(locked(job.out))
    begin(job, resume=resume)


def begin(job: Job, *, resume: bool) -> Path:
    """Take the job's folder, or find the interrupted run in it; the folder of work.

    Raises DataError for a folder that holds something else, a finished run, or one with other options.
    """
    work = job.out / WORK
    if resume and (work / "job.json").is_file():
        earlier = read_json(work / "job.json")
        if earlier != described(job):
            raise DataError(
                f"'{job.out}' holds an interrupted run with other options; give the same"
            )
        return work
    if resume and not work.is_dir() and job.out.is_dir() and any(job.out.iterdir()):
        raise DataError(f"the run in '{job.out}' is finished; there is nothing to resume")
    if work.is_dir() and not resume:
        raise DataError(
            f"'{job.out}' holds an interrupted run; resume it, or choose another folder"
        )
    require_free(job.out, overwrite=resume, advice="choose another")
    with refusals(job.out):
        work.mkdir(exist_ok=True)
    write_json(work / "job.json", described(job))
    return work


def described(job: Job) -> dict[str, Any]:
    """The options that decide the result, as JSON values."""
    target = job.how.wanted
    return {
        "model": job.model,
        "score": job.how.method,
        "sparsity": target.sparsity,
        "pattern": None if target.pattern is None else str(target.pattern),
        "scope": job.how.scope,
        "damping": job.how.damping,
        "samples": job.samples,
        "batch": job.batch,
        "seed": job.seed,
        "order": job.order,
        "dtype": job.dtype,
        "targets": list(job.targets),
        "ignore": list(job.ignore),
        **job.about,
    }


def told(job: Job) -> dict[str, Any]:
    """These options for what travels with the result: names of files and folders, not where they lie here."""
    found = described(job)
    data = found.get("data")
    named = {"data": without_folders(data)} if isinstance(data, str) else {}
    return {**found, "model": short_name(job.model), **named}
