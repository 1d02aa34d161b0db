"""`sparsify-fx stream`: one-shot pruning of a model that need not fit in memory."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify.commands.bar import Bar, counted
from sparsify.data.load import load_data
from sparsify.disk.files import folder_bytes, write_json
from sparsify.engine.pipeline import parse
from sparsify.errors import DataError, OptionError
from sparsify.ir.facts.admission import admission_in
from sparsify.ir.facts.fitting import check_data
from sparsify.pretrained.load import load_tokenizer, source_of
from sparsify.ranks import is_first
from sparsify.select.one_shot import OneShot
from sparsify.select.weights import Target
from sparsify.stream.job import Job
from sparsify.stream.plan import Plan, plan
from sparsify.stream.prune import prune


@dataclass(frozen=True)
class Source:
    """The data of a run as it was named: file or dataset, and tokens in a sequence."""

    data: str | None
    length: int


def job_of(model: str, text: str, source: Source, **others: Any) -> Job:
    """A job from a `choose-masks{...}` in text; OptionError for what cannot be done layer by layer."""
    passes: Sequence[Any] = parse(text).passes
    if [item.name for item in passes] != ["choose-masks"]:
        raise OptionError(
            f"'{text}' is not one choose-masks; as in choose-masks{{score=sparsegpt pattern=2:4}}"
        )
    (chosen,) = passes
    if chosen.of != ("weights",) or chosen.scope == "global":
        raise OptionError(
            f"'{text}' looks at more than one linear at a time; "
            "use 'run' for heads, channels and scope=global"
        )
    if chosen.scales is not None:
        raise OptionError(
            f"'{text}' rounds for quantizers, which a streamed model has not; use 'run'"
        )
    how = OneShot(
        chosen.score,
        Target.of(chosen.sparsity, chosen.pattern),
        chosen.scope,
        chosen.damping,
    )
    about = {"data": source.data, "length": source.length}
    return Job(
        model=source_of(model),
        how=how,
        targets=chosen.targets,
        ignore=chosen.ignore,
        about=about,
        **others,
    )


def stream(
    job: Job, source: Source, console: Console, *, resume: bool, json: Path | None = None
) -> None:
    """Prune into the folder of the job and say what was done."""
    if source.data is None:
        raise DataError("pruning needs text to see what the linears are given; name it with --data")
    started = time.perf_counter()
    with counted("tokenising") as bar:
        data = load_data(
            source.data,
            load_tokenizer(job.model, trust_remote_code=job.trust_remote_code),
            source.length,
            holdout=0,
            watch=bar.watch,
        )
    check_data(data, admission_in(job.model), f"the sequences of '{source.data}'")
    with Bar(console) as bar:
        prune(job, data, bar, resume=resume)
    console.print(f"written: {job.out}", soft_wrap=True, markup=False)
    if json is not None and is_first():
        figures = {"folder": str(job.out), "bytes": folder_bytes(job.out)}
        write_json(json, {**figures, "seconds": time.perf_counter() - started})


def show_plan(job: Job, source: Source, console: Console, json: Path | None = None) -> Plan:
    """Print what a run would take."""
    admission_in(job.model).check_length(source.length, "sequences")
    found = plan(job, source.length)
    table = Table(box=SIMPLE_HEAD, show_header=False)
    table.add_row("layers, linears", f"{found.layers}, {found.linears}")
    table.add_row("weights to prune", f"{found.weights / 1e6:,.1f} M")
    table.add_row("tokens", f"{found.tokens:,}")
    table.add_row("forward", _time(found.forward))
    table.add_row("sums over inputs", _time(found.sums))
    table.add_row("choices", _time(found.choices))
    table.add_row("together", _time(found.seconds))
    table.add_row("peak memory", f"{found.memory / 1e9:.1f} GB")
    console.print(table)
    if json is not None and is_first():
        write_json(json, {**asdict(found), "seconds": found.seconds})
    return found


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
