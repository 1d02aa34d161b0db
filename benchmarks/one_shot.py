"""Perplexity of the embedded model after one-shot pruning: magnitude, Wanda, SparseGPT, without retraining.

Calibrated on the first part of the held-out text, measured on the last; all linears but the head are
pruned. Also measured on any other text that is given, such as WikiText-2's test set.

    python benchmarks/one_shot.py [--text FILE] [--length 128] [--seeds 3] [--json FILE]
"""

import argparse
import statistics
from importlib import resources
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import Context, Program, load_data, load_model, parse, trace
from sparsify.data.sequences import Data, split
from sparsify.disk.files import write_json
from sparsify.measure.quality import perplexity

TARGETS = ("sparsity=0.5", "sparsity=0.6", "sparsity=0.7", "pattern=4:8", "pattern=2:4")
SCORES = ("magnitude", "wanda", "sparsegpt")


def pruned(score: str, target: str, data: Data, seed: int) -> Program:
    model, tokenizer = load_model("embedded")
    text = f"insert-masks | choose-masks{{score={score} {target}}} | fold-masks"
    if score != "magnitude":
        probes = "{gram=true}" if score == "sparsegpt" else ""
        text = f"insert-probes{probes} | calibrate{{samples=128}} | {text} | remove-probes"
    return parse(text).run(trace(model, tokenizer=tokenizer), Context(data=data, seed=seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model, tokenizer = load_model("embedded")
    held_out = str(resources.files("sparsify") / "embedded" / "heldout.txt")
    training, testing = split(load_data(held_out, tokenizer, options.length), 0.8)
    tests: dict[str, Data] = {"held-out": testing}
    if options.text:
        tests[options.text.name] = load_data(str(options.text), tokenizer, options.length)

    def measure(program: Program) -> dict[str, float]:
        return {
            name: perplexity(lambda b: program.run(b)[0], data, limit=150).value
            for name, data in tests.items()
        }

    rows: list[dict[str, object]] = [
        {"score": "dense", "target": "", **measure(trace(model))},
    ]
    for target in TARGETS:
        for score in SCORES:
            seeds = range(1 if score == "magnitude" else options.seeds)
            found = [measure(pruned(score, target, training, seed)) for seed in seeds]
            row: dict[str, object] = {"score": score, "target": target}
            for name in tests:
                values = [f[name] for f in found]
                row[name] = statistics.mean(values)
                row[f"{name} spread"] = max(values) - min(values)
            rows.append(row)
    table = Table(
        title=f"perplexity, context {options.length}", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for column in ("method", "target", *tests):
        table.add_column(column, no_wrap=True)
    for row in rows:
        cells = [f"{row[name]:.2f} ({row.get(f'{name} spread', 0.0):.2f})" for name in tests]
        table.add_row(str(row["score"]), str(row["target"]), *cells)
    Console().print(table)
    print("in brackets: largest minus smallest over the seeds of the calibration sample")
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
