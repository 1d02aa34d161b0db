"""`sparsify-fx run --plan`: what the trainings of a pipeline will take on each rank."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch.overrides import TorchFunctionMode

from sparsify.commands.run import Job
from sparsify.disk.files import write_json
from sparsify.engine.contract import NOTHING, Context, Pass
from sparsify.errors import OptionError
from sparsify.ir.program import Program
from sparsify.ir.trace.weightless import hole_like, trace_weightless
from sparsify.pretrained.load import dtype_of
from sparsify.ranks import is_first
from sparsify.stream.plan import product_rate
from sparsify.train.plan import Plan, Ranks, Step, plan
from sparsify.train.trainable import select_trainable

_SIZES = ("weights", "gathered", "gradients", "moments", "others", "activations", "peak", "sent")
_WORDS = {
    "gathered": "weights gathered for a time",
    "others": "masks, buckets, dense twin",
    "activations": "activations, at most",
    "sent": "sent in a step",
}


def show_plan(
    job: Job, count: int, sharded: bool, console: Console, json: Path | None = None
) -> list[Plan]:
    """Print what each training of a job takes; OptionError for a pipeline without one."""
    if count < 1:
        raise OptionError(f"--ranks {count} must be at least 1")
    ranks = Ranks(count, sharded and count > 1)
    trust = job.loading.trust_remote_code
    program = trace_weightless(job.model, job.dtype, trust_remote_code=trust)
    every = enumerate(_plans(job, program, ranks), 1)
    # Trainings in a row that take the same share a column.
    alike = [list(group) for _, group in groupby(every, key=lambda one: one[1][2])]
    found = [group[0][1] for group in alike]
    if not found:
        raise OptionError("the pipeline trains nothing, so that there is no step to plan")
    own = dtype_of(job.dtype)
    rates = [product_rate(torch.bfloat16 if s.bf16 else own, "cpu") for _, s, _ in found]
    way = "FSDP2" if ranks.sharded else "DDP"
    where = f"on each of {ranks.count} ranks, {way}" if ranks.count > 1 else "in one process"
    console.print(f"{job.model}, {where}", soft_wrap=True, highlight=False, markup=False)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    for group, (_, step, _) in zip(alike, found, strict=True):
        first, last = group[0][0], group[-1][0]
        numbers = f"{first}" if first == last else f"{first}-{last}"
        table.add_column(f"train {numbers}: {step.update}", justify="right", no_wrap=True)
    told = [one for _, _, one in found]
    table.add_row("parameters", *(f"{one.parameters / 1e6:,.1f} M" for one in told))
    table.add_row("that learn", *(f"{one.learned / 1e6:,.1f} M" for one in told))
    for size in _SIZES:
        row = (_size(getattr(one, size)) for one in told)
        table.add_row(_WORDS.get(size, size), *row, style="bold" if size == "peak" else "")
    work = (f"{one.multiply_adds / 1e12:,.2f} T" for one in told)
    table.add_row("multiply-adds of a step", *work)
    seconds = [_seconds(one, rate, ranks) for one, rate in zip(told, rates, strict=True)]
    table.add_row("a step, at this CPU's rate", *(f"{each:,.1f} s" for each in seconds))
    console.print(table)
    removed = [item.name for item in job.pipeline.passes if item.name.startswith("prune-")]
    if removed:
        console.print(
            f"Sizes are those before {removed[0]}, which only weights can tell.", soft_wrap=True
        )
    if json is not None and is_first():
        rows = [
            {"train": str(item), **asdict(one), "seconds": each}
            for (item, _, one), each in zip(found, seconds, strict=True)
        ]
        write_json(json, {"ranks": asdict(ranks), "trainings": rows})
    return told


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 10**8 else f"{count / 1e6:,.1f} MB"


def _plans(job: Job, program: Program, ranks: Ranks) -> Iterator[tuple[Pass, Step, Plan]]:
    """Every training with its plan, each after what was inserted before it."""
    for item in job.pipeline.passes:
        step = item.step(program, job.length)
        if step is not None:
            with select_trainable(program, step.update):
                yield item, step, plan(program, step, ranks)
        elif item.moves is NOTHING and not set(item.effect().adds) & program.features:
            with _Holes():
                item.rewrite(program, Context(seed=job.seed))


def _seconds(one: Plan, rate: float, ranks: Ranks) -> float:
    """Of products alone, shared out over the ranks, each as fast as this process."""
    return 2 * one.multiply_adds / ranks.count / rate


class _Holes(TorchFunctionMode):
    """Masks of ones take no memory: nobody will read them."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is torch.ones_like:
            kind = named.get("dtype") or args[0].dtype
            return hole_like(torch.empty(args[0].shape, dtype=kind, device="meta"))
        return func(*args, **named)
