"""DPF beside a fixed mask, gradual magnitude pruning and SR-STE: equal steps, equal zeros, several seeds.

A small convolutional network learns scikit-learn's digits from nothing, and is tested on 500 pictures it has
not seen; with `--model embedded` the embedded language model goes on learning a text, and the perplexity of
another one counts. All rows take the same batches in the same order and as many steps. `fixed mask`: half of
the steps dense, then what is smallest goes at once. SR-STE keeps its sparsity from first to last, and takes
a third of the learning rate (docs/adaptive.md says why).

    python benchmarks/dynamic_pruning.py [--steps 600] [--sparsity 0.8 0.9] [--seeds 3] [--json FILE]
        [--model embedded --train FILE --test FILE]
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from resumable import Rows
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import Context, Program, load_data, load_model, parse, trace
from sparsify.data.sequences import Data
from sparsify.measure.machine import machine, machine_line
from sparsify.measure.quality import perplexity

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from prune_digits import KINDS, accuracy, digits, fresh

METHODS = ("fixed mask", "gradual magnitude pruning", "SR-STE", "DPF")


class Task:
    """What is learnt: a program to start from, data, the kinds of masks, and how good a program is."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.data: Data
        self.measure: Callable[[Program], float]
        if options.model == "digits":
            self.data, test = digits()
            batch = test.batch(range(len(test)))
            pixels, labels = {"pixels": batch["pixels"]}, batch["labels"]
            self.start, self.kinds, self.lr, self.unit = fresh, KINDS, 0.003, "accuracy"
            self.measure = lambda program: accuracy(program.run(pixels)[0], labels)
            self.batch = 64
        else:
            _, tokenizer = load_model(options.model)
            self.data, test = (
                load_data(str(path), tokenizer, 128) for path in (options.train, options.test)
            )
            self.start, self.kinds, self.lr = _embedded, "weights", 0.0003
            self.unit, self.batch = "perplexity", 16
            self.measure = lambda program: (
                perplexity(lambda batch: program.run(batch)[0], test, limit=options.limit).value
            )

    def text(self, method: str, sparsity: float, steps: int) -> str:
        """The pipeline of a row, masks still in the graph."""
        kinds, how = self.kinds, f"batch={self.batch} lr={self.lr}"
        inserted = f"insert-masks{{of={kinds}}}"
        if method == "dense":
            return f"train{{steps={steps} {how}}}"
        if method == "fixed mask":
            half = steps // 2
            once = f"masks=every{{sparsity={sparsity} until=0.0 feedback=false of={kinds}}}"
            return f"train{{steps={half} {how}}} | {inserted} | train{{steps={steps - half} {how} {once}}}"
        if method == "SR-STE":
            how = f"batch={self.batch} lr={self.lr / 3:g} decay=sr-ste{{peak=0.0002}}"
            every = f"sparsity={sparsity}"
        else:
            every = f"sparsity={sparsity} schedule=cubic until=0.75"
            every += "" if method == "DPF" else " feedback=false"
        masks = f"masks=every{{steps=16 {every} of={kinds}}}"
        return f"{inserted} | train{{steps={steps} {how} {masks}}}"


def _embedded(seed: int) -> Program:
    model, tokenizer = load_model("embedded")
    return trace(model, tokenizer=tokenizer)


def result(task: Task, method: str, sparsity: float, seed: int, steps: int) -> dict[str, Any]:
    """Train one row; how good the masked model is, how good its dense weights are, and what came back."""
    started = time.perf_counter()
    context = Context(data=task.data, seed=seed)
    program = parse(task.text(method, sparsity, steps)).run(task.start(seed), context)
    seconds = time.perf_counter() - started
    rows, found = context.figures["train"], {"quality": task.measure(program)}
    if method != "dense":
        for path, value in program.tensors():
            if path.endswith("_mask") and value.dtype == torch.bool:
                value.fill_(True)
        found["dense weights"] = task.measure(program)
        found["zeros"] = rows[-1]["sparsity"]
    back = sum(row.get("reactivated", 0) for row in rows[:-1])
    return {**found, "reactivated": back, "seconds": seconds}


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    rows = Rows(options.json or Path(tempfile.mkdtemp()) / "rows.json")
    task = Task(options)
    wanted = [("dense", 0.0)] + [(m, s) for s in options.sparsity for m in METHODS]
    for method, sparsity in wanted:
        for seed in range(options.seeds):
            label = name_of(options, method, sparsity, seed)
            if not rows.get(label):
                found = result(task, method, sparsity, seed, options.steps)
                rows.put(label, **found)
                print(label, rows.get(label), flush=True)
    show(rows, wanted, task.unit, options)


def show(
    rows: Rows, wanted: list[tuple[str, float]], unit: str, options: argparse.Namespace
) -> None:
    table = Table(box=SIMPLE_HEAD)
    columns = ("", "zeros", f"{unit} (lowest-highest)", "of the dense weights", "came back", "s")
    for column in columns:
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for method, sparsity in wanted:
        labels = [name_of(options, method, sparsity, seed) for seed in range(options.seeds)]
        found = [rows.get(label) for label in labels]
        masked, dense = (
            spread([row[key] for row in found if key in row], unit)
            for key in ("quality", "dense weights")
        )
        means = [statistics.mean(row[key] for row in found) for key in ("reactivated", "seconds")]
        zeros = f"{found[0].get('zeros', 0.0):.2%}"
        table.add_row(method, zeros, masked, dense, *(f"{mean:.0f}" for mean in means))
    Console(width=120).print(table)
    Console().print(machine_line(machine()))


def name_of(options: argparse.Namespace, method: str, sparsity: float, seed: int) -> str:
    return f"{options.model}, {options.steps} steps, {method} at {sparsity:.0%}, seed {seed}"


def spread(values: list[float], unit: str) -> str:
    """The mean of some seeds, and the lowest and highest of them."""
    if not values:
        return ""
    form = "{:.1%}" if unit == "accuracy" else "{:.2f}"
    mean, low, high = (form.format(f(values)) for f in (statistics.mean, min, max))
    return f"{mean} ({low}-{high})"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("digits", "embedded"), default="digits")
    parser.add_argument("--train", type=Path, help="text to learn, for --model embedded")
    parser.add_argument("--test", type=Path, help="text to measure on, for --model embedded")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.8, 0.9])
    for name, value in (("steps", 600), ("seeds", 3), ("limit", 200), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.model == "embedded" and None in (options.train, options.test):
        parser.error("--model embedded needs --train and --test")
    return options


if __name__ == "__main__":
    main()
