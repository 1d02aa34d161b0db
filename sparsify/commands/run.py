"""`sparsify-fx run`: a model through a pipeline into a folder."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sparsify.engine.contract import Context
from sparsify.engine.export import check_exports, export
from sparsify.engine.pipeline import Pipeline
from sparsify.engine.registry import exporters, parse_exporter
from sparsify.engine.report import Report
from sparsify.errors import DataError, ExportError, PipelineError
from sparsify.files import notes, read_json, require_free, write_json
from sparsify.ir.devices import move
from sparsify.ir.pretrained import load_model
from sparsify.ir.program import Program
from sparsify.ir.trace import trace
from sparsify.measure.machine import machine
from sparsify.progress import Bar
from sparsify.train.data import Data, load_data

STATE = ".resume"


@dataclass(frozen=True)
class Job:
    """Everything that decides the result of a run, and where it goes."""

    model: str
    pipeline: Pipeline
    out: Path
    data: str | None = None
    length: int = 128
    kind: str = "text"
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    dump: Path | None = None
    resume: bool = False
    overwrite: bool = False
    to: tuple[str, ...] = ("safetensors",)


def run(job: Job, console: Console) -> tuple[Program, Report]:
    """Trace, run the pipeline, export, and write the report; goes on where an interrupted run ended.

    The state after each pass lies in `OUT/.resume` until the exports are written. Raises SparsifyError.
    """
    check_out(job)
    model, tokenizer = load_model(job.model, job.dtype)
    data = open_data(job, tokenizer)
    program = trace(model, tokenizer=tokenizer)
    move(program, job.device)
    report, state = Report(), job.out / STATE
    with Bar(console) as bar:
        context = Context(data=data, seed=job.seed, device=job.device, progress=bar)
        job.pipeline.check(program, context)
        check_exports(program, job.to, job.pipeline.features_after(program.features))
        write_json(_made(state) / "job.json", describe(job))
        program = job.pipeline.run(program, context, report=report, dump=job.dump, resume=state)
    move(program, "cpu")
    _forget_earlier(job)
    try:
        written = export(program, job.out, job.to, overwrite=job.overwrite or job.resume)
    except ExportError as error:
        raise ExportError(
            f"{error}; what the passes made is kept: run again with --resume and another --to"
        ) from error
    report.write(job.out)
    write_json(job.out / "run.json", {**describe(job), "machine": machine()})
    for name, rows in context.figures.items():
        write_json(job.out / f"{name}.json", rows)
    shutil.rmtree(state, ignore_errors=True)
    for path in written.values():
        show_notes(path, console)
    return program, report


def show_notes(folder: Path, console: Console) -> None:
    """Print what an export wrote for whoever opens its folder."""
    for note in notes(folder):
        console.print(
            f"{folder.name}: {note}", style="dim", soft_wrap=True, highlight=False, markup=False
        )


def describe(job: Job) -> dict[str, object]:
    """What decides the result, as JSON values."""
    return {
        "model": job.model,
        "pipeline": str(job.pipeline),
        "data": job.data,
        "length": job.length,
        "kind": job.kind,
        "seed": job.seed,
        "device": job.device,
        "dtype": job.dtype,
    }


def check_out(job: Job) -> None:
    """The out folder must be free, or hold the interrupted run of the same job that is to go on.

    Raises DataError or PipelineError; an interrupted run is never thrown away unasked.
    """
    state = job.out / STATE
    if job.resume:
        if not state.is_dir():
            if job.out.is_dir() and (job.out / "run.json").is_file():
                raise DataError(f"the run in '{job.out}' is finished; there is nothing to resume")
            return
        from_disk = state / "job.json"
        if from_disk.is_file():
            _same_job(job, from_disk)
        return
    require_free(job.out, overwrite=job.overwrite)
    if job.dump is not None:
        require_free(job.dump, overwrite=job.overwrite)
    shutil.rmtree(state, ignore_errors=True)


def _same_job(job: Job, path: Path) -> None:
    earlier, now = read_json(path), describe(job)
    for key, value in now.items():
        if earlier.get(key) != value:
            raise PipelineError(
                f"'{job.out}' holds an interrupted run with {key}={earlier.get(key)!r}, not {value!r}; "
                "give the same options, or another --out"
            )


def _forget_earlier(job: Job) -> None:
    """Remove formats and figures that an overwritten run left: they would mislead."""
    written = {parse_exporter(text).name for text in job.to}
    for name in set(exporters()) - written:
        shutil.rmtree(job.out / name, ignore_errors=True)
    for file in ("train.json", "eval.json", "bench.json", "report.html"):
        (job.out / file).unlink(missing_ok=True)


def open_data(job: Job, tokenizer: object) -> Data | None:
    """The data of a job; None when none is named."""
    if job.data is None:
        return None
    return load_data(job.data, tokenizer, job.length, job.kind)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
