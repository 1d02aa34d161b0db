"""What the options of `train` for memory and precision cost and save, each alone and all together.

AST at 2:4 with distillation, the training that holds the most: two models, gradients, moments, masks. Each
row is a process of its own, so that its peak memory is its own; rounds run all rows in turn, the next one
beginning with another, so that a machine that slows down slows them all. The first step of a run allocates
and is not timed. `cpu` is the processor's time, all threads together, which a shared machine disturbs less.
The loss is that of the last step. The row `whole logits` takes losses of whole outputs; all others in chunks
behind the head.

    python benchmarks/training_memory.py [--model embedded|FOLDER|GGUF] [--text FILE] [--batch 4]
        [--length 512] [--steps 3] [--threads 2] [--rounds 1] [--rows NAME;...] [--json FILE]

Without `--text` the sequences are random tokens; neither time nor memory depends on them.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from child import printed_by
from peak import peak_bytes
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import Context, load_data, load_model, parse, trace
from sparsify.data.sequences import Data, TextData
from sparsify.disk.files import write_json
from sparsify.ir.device import copied
from sparsify.measure.latency import turn
from sparsify.measure.machine import machine, machine_line
from sparsify.train.objective import Objective

WHOLE = "whole logits"
TWIN = "bf16 twin alone"
# Name -> options of `train` beside those of AST; `micro` stands for a batch of one, accumulated.
ROWS = {
    WHOLE: "",
    "logits in chunks": "",
    "accumulate": "micro",
    "recompute=layers": "recompute=layers",
    "recompute=selective": "recompute=selective",
    TWIN: "",
    "precision=bf16": "precision=bf16",
    "bf16 and layers": "precision=bf16 recompute=layers",
    "bf16 and selective": "precision=bf16 recompute=selective",
    "bf16, layers and accumulate": "micro precision=bf16 recompute=layers",
}
FIRST = "logits in chunks"


class Clock:
    """A progress that notes the times between the steps of training."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self._training = False

    def start(self, title: str, total: int) -> None:
        """Begin with the steps of training."""
        self._training = title == "train"
        self._last = time.perf_counter(), time.process_time()

    def advance(self, **figures: float) -> None:
        """One step further."""
        now = time.perf_counter(), time.process_time()
        if self._training:
            self.seconds.append(now[0] - self._last[0])
            self.cpu.append(now[1] - self._last[1])
        self._last = now

    def rename(self, title: str) -> None:
        """Nothing is shown."""


def pipeline(options: argparse.Namespace, more: str) -> str:
    micro = "micro" in more.split()
    size = f"batch=1 accumulate={options.batch}" if micro else f"batch={options.batch}"
    return (
        "insert-masks | choose-masks{pattern=2:4} | "
        f"train{{steps={options.steps} {size} lr=0.0003 warmup=0.1 task=0.33 "
        "distill=kl{weight=0.67 temperature=2.0} masks=every decay=ars-ste{peak=0.0003} "
        f"{more.replace('micro', '')}}}"
    )


def row(options: argparse.Namespace) -> None:
    """The process of one row: prints its figures."""
    torch.set_num_threads(options.threads)
    model, tokenizer = load_model(options.model)
    program = trace(model, tokenizer=tokenizer)
    if options.row == WHOLE:
        Objective._in_chunks = lambda self, batch: False  # type: ignore[method-assign]
    dense = copied(program, torch.bfloat16) if options.row == TWIN else None
    data: Data
    if options.text:
        data = load_data(options.text, tokenizer, length=options.length)
    else:
        draw = torch.Generator().manual_seed(0)
        size = options.length * options.batch * options.steps
        data = TextData(torch.randint(3, 1000, (size,), generator=draw), options.length)
    clock = Clock()
    context = Context(data=data, seed=0, progress=clock, dense=dense)
    before = peak_bytes()
    parse(pipeline(options, ROWS[options.row])).run(program, context)
    last = context.figures["train"][-1]
    figures = {"seconds": clock.seconds[1:], "cpu": clock.cpu[1:], "loss": last["loss"]}
    print(json.dumps({**figures, "before": before, "peak": peak_bytes()}))


def words(options: argparse.Namespace, name: str) -> list[str]:
    """The command of one row."""
    given = [sys.executable, __file__, "--row", name]
    for key in ("model", "batch", "length", "steps", "threads"):
        given += [f"--{key}", str(getattr(options, key))]
    return given + (["--text", str(options.text)] if options.text else [])


def show(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    """The table, and the same as JSON."""
    console = Console(width=130)
    console.print(machine_line(machine()), f"{options.threads} threads, {options.model}")
    tokens = options.batch * options.length
    table = Table(title=f"AST at 2:4, {options.batch} x {options.length} tokens", box=SIMPLE_HEAD)
    for column in ("row", "tokens/s", "times chunks", "cpu s a step", "peak GB", "loss"):
        table.add_column(column, justify="left" if column == "row" else "right", no_wrap=True)
    rows = []
    for name, runs in found.items():
        seconds = [statistics.median(run["seconds"]) for run in runs]
        base = [statistics.median(run["seconds"]) for run in found.get(FIRST, runs)]
        ratios = [b / s for b, s in zip(base, seconds, strict=True)]
        cpu = statistics.median(statistics.median(run["cpu"]) for run in runs)
        peak = max(run["peak"] for run in runs)
        rows.append({"row": name, "options": ROWS[name], "runs": runs})
        table.add_row(
            name,
            f"{tokens / statistics.median(seconds):.0f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            f"{cpu:.1f}",
            f"{peak / 1e9:.2f}",
            f"{runs[-1]['loss']:.4f}",
        )
    console.print(table)
    if options.json:
        how = {key: getattr(options, key) for key in ("batch", "length", "steps", "threads")}
        write_json(options.json, {"machine": machine(), **how, "rows": rows})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rows", default=";".join(ROWS), help="names, separated by ';'")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.row:
        row(options)
        return
    chosen = options.rows.split(";")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for number in range(options.rounds):
        for name in turn(chosen, number):
            said = printed_by(name, words(options, name))
            found[name].append(json.loads(said.splitlines()[-1]))
            print(f"round {number + 1}: {name}", found[name][-1], file=sys.stderr, flush=True)
    show(found, options)


if __name__ == "__main__":
    main()
