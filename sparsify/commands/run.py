"""`sparsify-fx run`: a model through a pipeline into a folder."""

import contextlib
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console

from sparsify import ranks
from sparsify.commands.artifacts import loaded, traced
from sparsify.commands.bar import Bar, counted
from sparsify.commands.config import FILE, written
from sparsify.commands.summary import summary
from sparsify.commands.track import TRACK, Tracked, check_trackers, tracking
from sparsify.data.domains import HOLDOUT, DomainData
from sparsify.data.load import load_data
from sparsify.data.sequences import Data
from sparsify.data.spec import without_folders
from sparsify.disk.files import (
    TOKENS,
    WORK,
    forget,
    notes,
    read_mapping,
    refusals,
    require_free,
    write_json,
    write_text,
)
from sparsify.disk.locks import locked
from sparsify.engine.contract import Context
from sparsify.engine.export import check_exports, chosen_exporters, export
from sparsify.engine.pipeline import Pipeline
from sparsify.engine.publish import abandon, publish
from sparsify.engine.registry import exporters, parse_exporter
from sparsify.engine.report import Report
from sparsify.engine.resume import kept
from sparsify.errors import DataError, ExportError, OptionError, PipelineError
from sparsify.ir.device import device_of_rank, move
from sparsify.ir.facts.admission import admission_of_model
from sparsify.ir.facts.fitting import check_data
from sparsify.ir.program import Program
from sparsify.measure.machine import machine
from sparsify.pretrained.loading import STRICT, Loading
from sparsify.pretrained.origin import short_name
from sparsify.signals import stop_of

RUN = "run.json"
# Beside the formats: what a run writes, and what was measured on its result.
_FIGURES = ("train.json", "choose-tensors.json")
_WRITTEN = ("report.json", RUN, FILE, *_FIGURES, "eval.json", "bench.json", "report.html", TRACK)


@dataclass(frozen=True)
class Job:
    """Everything that decides the result of a run, and where it goes."""

    model: str
    pipeline: Pipeline
    out: Path
    data: str | None = None
    length: int = 128
    kind: str = "text"
    holdout: float | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 0
    dump: Path | None = None
    resume: bool = False
    overwrite: bool = False
    to: tuple[str, ...] = ("safetensors",)
    track: tuple[str, ...] = ()
    loading: Loading = STRICT


def run(job: Job, console: Console) -> tuple[Program, Report]:
    """Trace, run the pipeline, export, and write the report; goes on where an interrupted run ended.

    The state after each pass lies in `OUT/.resume`, the tokens of its data in `OUT/.tokens`, until everything
    is written. Several processes do the same, and rank 0 alone writes. Raises SparsifyError, InUse when
    another process is writing there.
    """
    with contextlib.ExitStack() as held:
        ranks.by_first(lambda: _take(job, held))
        state = job.out / WORK
        try:
            return _run(job, state, console)
        except BaseException as error:
            stop = stop_of(error)
            if not kept(state):
                if ranks.is_first():
                    forget(job.out / TOKENS)
                    abandon(state, job.out)
            elif stop is not None:
                stop.kept = (
                    f"what was done is kept in '{state}'; the same command with --resume goes on"
                )
            raise


def _take(job: Job, held: contextlib.ExitStack) -> None:
    """Hold the folders of a job against others, if they are free for it."""
    held.enter_context(locked(job.out))
    check_out(job)
    check_trackers(job.track)
    chosen_exporters(job.to)
    if job.dump is not None:  # it may lie in the other
        held.enter_context(locked(job.dump))


def _run(job: Job, state: Path, console: Console) -> tuple[Program, Report]:
    if job.threads:
        torch.set_num_threads(job.threads)
    started = time.perf_counter()
    model, tokenizer = loaded(job.model, job.loading, job.dtype)
    # One of several processes makes the tokens, all read them.
    ranks.by_first(lambda: open_data(job, tokenizer) if ranks.count() > 1 else None)
    data = open_data(job, tokenizer)
    if data is not None:
        check_data(data, admission_of_model(model), f"the sequences of '{job.data}'")
    program = traced(model, tokenizer)
    device = device_of_rank(job.device)
    move(program, device)
    report = Report()
    with contextlib.ExitStack() as held:
        bar = held.enter_context(Bar(console))
        figures: dict[str, list[dict[str, float]]] = {}
        watch = Tracked(bar, report, figures)
        context = Context(data=data, seed=job.seed, device=device, progress=watch, figures=figures)
        job.pipeline.check(program, context)
        features = job.pipeline.features_after(program.features)
        check_exports(program, job.to, features, job.pipeline.heads_left(program))
        if ranks.is_first():
            _begin(job, state)
            told = {"model": job.model, "pipeline": str(job.pipeline), "seed": job.seed}
            held.enter_context(tracking(job.track, state / TRACK, told, job.device, watch))
        program = job.pipeline.run(program, context, report=report, dump=job.dump, resume=state)
    move(program, "cpu")
    ranks.by_first(lambda: forget(job.out / TOKENS))
    ranks.by_first(lambda: _write(job, state, program, report, context, console))
    if ranks.is_first():
        names = [parse_exporter(text).name for text in job.to]
        for name in names:
            show_notes(job.out / name, console)
        console.print(report.table())
        seconds = time.perf_counter() - started
        said = summary(job.model, job.dtype, job.out, names, seconds)
        console.print(said, soft_wrap=True, highlight=False, markup=False)
    return program, report


def _begin(job: Job, state: Path) -> None:
    """Make the folder of work, and say in it whose it is."""
    if not job.resume:
        abandon(state, job.out)  # never taken up unasked
    with refusals(job.out):
        state.mkdir(exist_ok=True)
    write_json(state / "job.json", describe_job(job))


def _write(
    job: Job, state: Path, program: Program, report: Report, context: Context, console: Console
) -> None:
    """Export a finished run, and write what belongs to it."""

    def write(folder: Path) -> None:
        with counted("exporting", console) as bar:
            export(program, folder, job.to, progress=bar)
        report.write(folder)
        if (state / TRACK).is_dir():
            shutil.copytree(state / TRACK, folder / TRACK)
        data = context.data
        domains = {"domains": data.described()} if isinstance(data, DomainData) else {}
        write_text(folder / FILE, written({**describe_job(job), **_more(job)}))
        write_json(folder / RUN, {**_told(job), **domains, "machine": machine()})
        for name, rows in context.figures.items():
            write_json(folder / f"{name}.json", rows)

    try:
        publish(state, job.out, write, {*exporters(), *_WRITTEN}, last=RUN)
    except (ExportError, DataError) as error:
        disk = isinstance(error, DataError) or isinstance(error.__cause__, DataError)
        way = "--resume when that is mended" if disk else "--resume and another --to"
        raise type(error)(f"{error}; what the passes made is kept: run again with {way}") from error


def show_notes(folder: Path, console: Console) -> None:
    """Print what an export wrote for whoever opens its folder."""
    for note in notes(folder):
        console.print(
            f"{folder.name}: {note}", style="dim", soft_wrap=True, highlight=False, markup=False
        )


def describe_job(job: Job) -> dict[str, object]:
    """What decides the result, as JSON values."""
    return {
        "model": job.model,
        "pipeline": str(job.pipeline),
        "data": job.data,
        "length": job.length,
        "kind": job.kind,
        "holdout": job.holdout,
        "seed": job.seed,
        "device": job.device,
        "dtype": job.dtype,
        "adapter": job.loading.adapter,
        "revision": job.loading.revision,
    }


def _told(job: Job) -> dict[str, object]:
    """The same for what travels with the result: names of files and folders, not where they lie here."""
    adapter, data = job.loading.adapter, job.data
    return {
        **describe_job(job),
        "model": short_name(job.model),
        "data": None if data is None else without_folders(data),
        "adapter": None if adapter is None else short_name(adapter),
    }


def _more(job: Job) -> dict[str, object]:
    """What else a command said of a job: formats, threads, and what was let in that is refused otherwise."""
    usual = asdict(STRICT)
    let_in = {name: value for name, value in asdict(job.loading).items() if value != usual[name]}
    track = ",".join(job.track) or None
    return {"to": job.to, "threads": job.threads or None, "track": track, **let_in}


def check_out(job: Job) -> None:
    """The out folder must be free, or hold the interrupted run of the same job that is to go on.

    Raises DataError or PipelineError; an interrupted run is never thrown away unasked.
    """
    state = job.out / WORK
    if job.out.is_dir() and [path.name for path in job.out.iterdir()] == [TOKENS]:
        return  # of a run that was killed before its first pass
    if job.resume:
        if not state.is_dir():
            if job.out.is_dir() and (job.out / RUN).is_file():
                raise DataError(f"the run in '{job.out}' is finished; there is nothing to resume")
            require_free(job.out, overwrite=job.overwrite)
            return
        from_disk = state / "job.json"
        if from_disk.is_file():
            _same_job(job, from_disk)
        return
    require_free(job.out, overwrite=job.overwrite)
    if job.dump is not None:
        require_free(job.dump, overwrite=job.overwrite)


def _same_job(job: Job, path: Path) -> None:
    earlier, now = read_mapping(path), describe_job(job)
    for key, value in now.items():
        if earlier.get(key) != value:
            raise PipelineError(
                f"'{job.out}' holds an interrupted run with {key}={earlier.get(key)!r}, not {value!r}; "
                "give the same options, or another --out"
            )


def open_data(job: Job, tokenizer: object) -> Data | None:
    """The data of a job; None when none is named. OptionError for a held-out share of no domains.

    Its tokens lie in files in the folder of the run while that lasts, and for `--resume`.
    """
    data: Data | None = None
    if job.data is not None:
        share = HOLDOUT if job.holdout is None else job.holdout
        with counted("tokenising") as bar:
            data = load_data(
                job.data,
                tokenizer,
                job.length,
                job.kind,
                holdout=share,
                watch=bar.watch,
                store=job.out / TOKENS,
            )
    if job.holdout is not None and not isinstance(data, DomainData):
        raise OptionError(
            f"--holdout {job.holdout:g} is for domains; name them, as in --data web=a.txt,code=b.txt"
        )
    return data
