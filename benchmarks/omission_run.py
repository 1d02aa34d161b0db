"""Continual pre-training of a trained model on text of another kind: dense, SAT, and SAT taken apart.

Every row takes the same sequences in the same order for the same number of steps at the same learning rate,
and is measured dense on the part of the text that is held out, at the end and along the way. Seconds are
those of training steps alone (`cpu` the processor's, which a shared machine disturbs less). The row
`dense, as long as SAT` is dense training with as many steps as fit into the seconds of the SAT row of
its seed, on a whole schedule of its own: the comparison at equal time. Rows run for each seed in turn,
so that a machine that slows down slows them all; with `--json` a run that was stopped goes on.

    python benchmarks/omission_run.py --text FILE [--model embedded|FOLDER] [--seeds 0,1,2] [--json FILE]
"""

import argparse
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import Context, Program, load_data, load_model, parse, trace
from sparsify.data.sequences import Data, split
from sparsify.disk.files import read_json, write_json
from sparsify.ir.mode import set_training
from sparsify.measure.machine import machine, machine_line
from sparsify.measure.quality import perplexity

Results = dict[str, list[dict[str, Any]]]
SAT = "SAT"
EQUAL = "dense, as long as SAT"
CHOICE = "metric=wanda select=topk"
# Name -> the options of insert-omission (None: dense), the part of the rate, and whether it comes down.
# `--choice` stands in for CHOICE, and `--of` says what is left out where a row does not.
ROWS: dict[str, tuple[str | None, float, bool]] = {
    "dense": (None, 0.0, False),
    SAT: (CHOICE, 1.0, True),
    EQUAL: (None, 0.0, False),
    "without LORS": (CHOICE, 1.0, False),
    "half the rate": (CHOICE, 0.5, True),
    "masked by zero": (f"{CHOICE} form=zero", 1.0, True),
    "maxip, topk": ("metric=maxip select=topk", 1.0, True),
    "maxip, sampling": ("metric=maxip select=sampling", 1.0, True),
    "wanda, sampling": ("metric=wanda select=sampling", 1.0, True),
    "magnitude, topk": ("metric=magnitude select=topk", 1.0, True),
    "magnitude, topk, without LORS": ("metric=magnitude select=topk", 1.0, False),
    "magnitude, sampling": ("metric=magnitude select=sampling", 1.0, True),
    "uniform, sampling": ("metric=uniform select=sampling", 1.0, True),
    "uniform, sampling, without LORS": ("metric=uniform select=sampling", 1.0, False),
    "channels only": (f"of=channels {CHOICE}", 1.0, True),
    "heads and channels": (f"of=heads,channels {CHOICE}", 1.0, True),
    "whole KV groups": (f"of=heads,channels {CHOICE} rule=groups", 1.0, True),
}


@dataclass
class Watch:
    """Times the steps of a run and measures the program, dense, along the way."""

    program: Program
    test: Data
    limit: int
    every: int
    steps: int
    tokens: int
    seconds: float = 0.0
    cpu: float = 0.0
    done: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)

    def start(self, title: str, total: int) -> None:
        """The run begins."""
        self._mark = time.process_time()

    def advance(self, **figures: float) -> None:
        """One step is done."""
        self.cpu += time.process_time() - self._mark
        self.seconds += self.tokens / figures["tokens_per_s"]
        self.done += 1
        if self.done % self.every == 0 or self.done == self.steps:
            value = measured(self.program, self.test, self.limit)
            set_training(self.program.module, True)
            point = {"step": self.done, "seconds": self.seconds, "cpu": self.cpu}
            self.curve.append({**point, "perplexity": value, "rate": figures.get("omission", 0.0)})
        self._mark = time.process_time()


def measured(program: Program, data: Data, limit: int) -> float:
    """Perplexity of the dense program on the first sequences of the held-out text."""
    return perplexity(lambda batch: program.run(batch)[0], data, limit=limit).value


def run_of(
    name: str, steps: int, texts: tuple[Data, Data], seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One row with one seed: seconds, perplexity at the end and along the way, and what was omitted."""
    omission, part, falls = ROWS[name]
    omission = omission and omission.replace(CHOICE, options.choice)
    model, tokenizer = load_model(options.model)
    program = trace(model, tokenizer=tokenizer)
    how = f"steps={steps} batch={options.batch} lr={options.lr} warmup={options.warmup}"
    text = f"train{{{how} schedule={options.shape}}}"
    if omission is not None:
        hold = options.hold if falls else 1.0
        ladder = f"lors{{rate={part * options.rate} hold={hold} rungs={options.rungs} shape={options.shape}}}"
        multiple = f"multiple={options.multiple}"
        of = "" if "of=" in omission else f"of={options.of} "
        text = (
            f"insert-omission{{{of}{omission} {multiple}}} | train{{{how} schedule={ladder}}} | "
            "remove-omission"
        )
    before = measured(program, texts[1], options.limit)
    every = max(1, steps // options.points)
    tokens = options.batch * options.length
    watch = Watch(program, texts[1], options.limit, every, steps, tokens)
    context = Context(data=texts[0], seed=seed, progress=watch)
    parse(text).run(program, context)
    figures = context.figures["train"]
    return {
        "seed": seed,
        "pipeline": text,
        "steps": steps,
        "before": before,
        "perplexity": measured(program, texts[1], options.limit),
        "seconds": watch.seconds,
        "cpu": watch.cpu,
        "curve": watch.curve,
        "losses": [row["loss"] for row in figures],
        "omission": [row.get("omission", 0.0) for row in figures],
        "coverage": [row["coverage"] for row in figures if "coverage" in row],
        "jaccard": [row["jaccard"] for row in figures if "jaccard" in row],
    }


def settings(options: argparse.Namespace) -> dict[str, str]:
    """What a figure of the table depends on besides its row and seed."""
    free = ("json", "seeds", "rows", "clock")
    return {key: str(value) for key, value in vars(options).items() if key not in free}


def steps_of(name: str, seed: int, results: Results, options: argparse.Namespace) -> int | None:
    """The steps of a row; None for the one at equal time while what it is measured by is missing."""
    if name != EQUAL:
        return int(options.steps)
    found = [[run for run in results.get(row, []) if run["seed"] == seed] for row in ("dense", SAT)]
    if not all(found):
        return None
    dense, sat = found[0][0], found[1][0]
    return max(1, round(options.steps * sat[options.clock] / dense[options.clock]))


def show(results: Results, options: argparse.Namespace, console: Console) -> None:
    """The table of all rows; time and perplexity against dense training of the same seed."""
    title = (
        f"{options.model} on {options.text.name}: {options.steps} steps of {options.batch} x "
        f"{options.length} tokens, perplexity dense and held out, context {options.length}"
    )
    table = Table(title=title, box=SIMPLE_HEAD)
    for column in (
        "row",
        "seeds",
        "steps",
        "seconds",
        "cpu s",
        "time saved",
        "perplexity",
        "to dense",
    ):
        table.add_column(column, justify="left" if column == "row" else "right", no_wrap=True)
    dense = {run["seed"]: run for run in results.get("dense", [])}
    for name, runs in results.items():
        pairs = [(run, dense[run["seed"]]) for run in runs if run["seed"] in dense]
        saved = [1 - run[options.clock] / base[options.clock] for run, base in pairs]
        worse = [run["perplexity"] / base["perplexity"] - 1 for run, base in pairs]
        table.add_row(
            name,
            str(len(runs)),
            str(runs[0]["steps"]),
            f"{statistics.mean(run['seconds'] for run in runs):.0f}",
            f"{statistics.mean(run['cpu'] for run in runs):.0f}",
            spread(saved, "{:+.1%}"),
            spread([run["perplexity"] for run in runs], "{:.2f}"),
            spread(worse, "{:+.1%}"),
        )
    console.print(table)
    console.print(
        f"in brackets: largest minus smallest over the seeds; time saved by {options.clock}; "
        f"perplexity before training {next(iter(results.values()))[0]['before']:.2f}"
    )


def spread(values: list[float], form: str) -> str:
    """The mean of values, and their range where there are several."""
    if not values:
        return ""
    mean = form.format(statistics.mean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ({form.replace('+', '').format(max(values) - min(values))})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--part", type=float, default=0.9, help="of the text, to train on")
    parser.add_argument("--model", default="embedded", help="embedded, or a folder")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.0005)
    parser.add_argument("--warmup", type=float, default=0.05)
    parser.add_argument("--shape", default="stable", help="of the learning rate")
    parser.add_argument("--of", default="heads,channels", help="what SAT leaves out")
    parser.add_argument("--choice", default=CHOICE, help="how SAT chooses")
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--hold", type=float, default=0.8)
    parser.add_argument("--rungs", type=int, default=5)
    parser.add_argument("--multiple", type=int, default=16)
    parser.add_argument("--limit", type=int, default=300, help="held-out sequences to measure on")
    parser.add_argument("--points", type=int, default=10, help="measurements along a run")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("seconds", "cpu"), default="seconds")
    parser.add_argument("--rows", help="names of the rows wanted, divided by ;")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    _, tokenizer = load_model(options.model)
    texts = split(load_data(str(options.text), tokenizer, options.length), options.part)
    console = Console(width=140)
    console.print(machine_line(machine()), f"{options.threads} threads")
    results: Results = {}
    if options.json and options.json.is_file():
        stored = read_json(options.json)
        if stored["options"] != settings(options):
            raise SystemExit(f"{options.json} was made with other options; name another file")
        results = stored["rows"]
    wanted = options.rows.split(";") if options.rows else list(ROWS)
    for seed in [int(word) for word in options.seeds.split(",")]:
        for name in [name for name in ROWS if name in wanted]:
            steps = steps_of(name, seed, results, options)
            runs = results.setdefault(name, [])
            if steps is None or any(run["seed"] == seed for run in runs):
                continue
            runs.append(run_of(name, steps, texts, seed, options))
            shown = ("seed", "steps", "seconds", "cpu", "before", "perplexity")
            console.print(name, {key: runs[-1][key] for key in shown})
            if options.json:
                about = {"options": settings(options), "machine": machine()}
                write_json(options.json, {**about, "rows": results})
    show({name: runs for name, runs in results.items() if runs}, options, console)


if __name__ == "__main__":
    main()
