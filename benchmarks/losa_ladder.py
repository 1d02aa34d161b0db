"""LoSA taken apart on the embedded model: what every part of it adds to one-shot pruning.

One-shot Wanda and SparseGPT; then, with `--score` choosing the masks: branches trained under the mask, the
cubic ladder, sparsity by redundancy, ranks by error (that is LoSA); ATP and OWL in place of redundancy; and
branches trained without the mask, merged and pruned again. Every trained row takes as many steps on
the same sequences, and starts every rung with a warm-up; ranks are equal, or so in the mean. Text as in
`adaptive.py`. Seconds are those of the passes: what observes and decides, what chooses masks, what trains.
With `--json` a run that was stopped goes on.

    python benchmarks/losa_ladder.py --sources FOLDER --sources FOLDER [--text FILE] [--json FILE]
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from adaptive import KD, Results, cell, measured, texts_of, values_of
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import Context, load_model, parse, trace
from sparsify.data.sequences import Data
from sparsify.disk.files import read_json, write_json
from sparsify.engine.report import Report, Row
from sparsify.measure.machine import machine, machine_line
from sparsify.tensors.ladder import cubic

RUNGS = 5
# Name -> the share of zeros, and what makes it whole N of M.
TARGETS = {"50 %": (0.5, ""), "70 %": (0.7, ""), "mixed 2:8": (0.75, " m=8")}
LOSA = "+ ranks by error: LoSA"
ATP = "ATP in place of redundancy"
# From one layer to the next; N of N:8 needs more, or rounding takes it away.
STEPS = {"": 0.02, " m=8": 0.05}
# Name -> what gives layers their sparsity, on how many rungs, whether ranks follow the error.
LADDER = {
    "masked branches": ("uniform", 1, False),
    "+ cubic ladder": ("uniform", RUNGS, False),
    "+ sparsity by redundancy": ("rmi", RUNGS, False),
    LOSA: ("rmi", RUNGS, True),
    ATP: ("atp", RUNGS, False),
    "OWL in place of redundancy": ("owl", RUNGS, False),
}
ONE_SHOT = {"one-shot Wanda": "wanda", "one-shot SparseGPT": "sparsegpt"}
PLAIN = "plain branches, merged, pruned again"
ROWS = ["dense", *ONE_SHOT, *LADDER, PLAIN]
KINDS = {
    "choose-masks": "choosing",
    "train": "training",
    "calibrate": "deciding",
    "allocate-sparsity": "deciding",
    "allocate-ranks": "deciding",
}


def pipeline(row: str, target: str, options: argparse.Namespace) -> str:
    """The pipeline of a row."""
    final, m = TARGETS[target]
    if row == "dense":
        return ""

    def pruned(by: str, sparsity: float, score: str) -> str:
        gram = "{gram=true}" if score == "sparsegpt" else ""
        share = f"allocate-sparsity{{by={by} sparsity={sparsity:.4f}{m}}}"
        return (
            f"insert-probes{gram} | calibrate{{samples={options.samples}}} | {share} | "
            f"choose-masks{{score={score}}} | remove-probes"
        )

    def trained(steps: int) -> str:
        return (
            f"train{{steps={steps} batch={options.batch} lr={options.lr} warmup=0.3 "
            f"schedule=linear update=lora{' ' + KD if options.distill else ''}}}"
        )

    def once(score: str) -> str:
        return f"insert-masks | {pruned('uniform', final, score)} | fold-masks"

    branches = f"insert-lora{{rank={options.rank} alpha={2.0 * options.rank}}}"
    if row in ONE_SHOT:
        return once(ONE_SHOT[row])
    if row == PLAIN:
        again = once(options.score)
        return f"{again} | {branches} | {trained(options.steps)} | fold-lora | {again}"
    by, rungs, follows = LADDER[row]
    by += f" spread={STEPS[m]}" if row == ATP else ""
    parts = ["insert-masks", branches]
    for t in range(1, rungs + 1):
        parts.append(pruned(by, cubic(t, rungs, final), options.score))
        if follows:
            mean = options.rank * (5 + t) // 8  # 6 to 10 for the paper's 8
            parts.append(f"allocate-ranks{{mean={mean} largest={2 * options.rank} samples=32}}")
        parts.append(trained(options.steps // rungs))
    return " | ".join([*parts, "fold-lora", "fold-masks"])


def run_of(
    row: str,
    target: str,
    data: Data,
    tests: dict[str, Data],
    options: argparse.Namespace,
    seed: int,
) -> dict[str, Any]:
    """One row with one seed: perplexities, zeros, and seconds by what they were spent on."""
    model, tokenizer = load_model("embedded")
    program = trace(model, tokenizer=tokenizer)
    text, report = pipeline(row, target, options), Report()
    nodes = len(program.graph.nodes)
    if text:
        context = Context(data=data, seed=seed)
        program = parse(text).run(program, context, report=report, compare=False)
    assert len(program.graph.nodes) == nodes, "something of the branches is left"
    return {
        "seed": seed,
        "pipeline": text,
        "zeros": report.rows[-1].zeros if text else 0,
        "seconds": costs(report.rows),
        "perplexity": {test: measured(program, part) for test, part in tests.items()},
    }


def costs(rows: list[Row]) -> dict[str, float]:
    """Seconds of the passes by kind."""
    total = dict.fromkeys(KINDS.values(), 0.0)
    for row in rows:
        if row.name in KINDS:
            total[KINDS[row.name]] += row.seconds
    return total


def show(results: Results, target: str, options: argparse.Namespace, console: Console) -> None:
    """The table of one target."""
    title = (
        f"{target}, perplexity, context {options.length}, {options.steps} steps of {options.batch}"
    )
    table = Table(title=title, box=SIMPLE_HEAD)
    texts = list(results["dense"][0]["perplexity"])
    times = list(dict.fromkeys(KINDS.values()))
    columns = ("row", "seeds", *texts, "gap closed", "against LoSA, by seed", "zeros")
    for column in (*columns, *(f"{kind}, s" for kind in times)):
        table.add_column(column, no_wrap=True, justify="left" if column == "row" else "right")
    losa = values_of(results, LOSA, texts[0])
    worst = statistics.mean(values_of(results, next(iter(ONE_SHOT)), texts[0]) or [float("nan")])
    best = values_of(results, "dense", texts[0])[0]
    for row, runs in results.items():
        if not runs:
            continue
        cells = [cell(values_of(results, row, text)) for text in texts]
        own = values_of(results, row, texts[0])
        pairs = zip(own, losa, strict=True) if len(own) == len(losa) else ()
        table.add_row(
            row,
            str(len(runs)),
            *cells,
            f"{(worst - statistics.mean(own)) / (worst - best):.1%}",
            " ".join(f"{value - other:+.2f}" for value, other in pairs),
            f"{runs[0]['zeros']:,}",
            *(f"{statistics.mean(run['seconds'][kind] for run in runs):.0f}" for kind in times),
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", type=Path, action="append", required=True)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--rank", type=int, default=8, help="of the branches, in the mean")
    parser.add_argument(
        "--distill", action="store_true", help="two thirds of the loss from the dense model"
    )
    parser.add_argument("--score", default="sparsegpt", choices=ONE_SHOT.values())
    parser.add_argument("--samples", type=int, default=128, help="of calibration")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="repeat")
    parser.add_argument("--row", action="append", choices=ROWS, help="one row alone; repeat")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data, tests = texts_of(options)
    console = Console(width=160)
    console.print(machine_line(machine()))
    found: dict[str, Results] = {}
    names = ("steps", "batch", "length", "lr", "rank", "samples", "score", "distill")
    about = {name: getattr(options, name) for name in names}
    if options.json and options.json.is_file():
        stored = read_json(options.json)
        if stored["options"] != about:
            raise SystemExit(f"{options.json} was made with other options; name another file")
        found = stored["targets"]
    for seed in [int(word) for word in options.seeds.split(",")]:
        for target in options.target or TARGETS:
            for row in options.row or ROWS:
                runs = found.setdefault(target, {}).setdefault(row, [])
                if any(run["seed"] == seed for run in runs) or (runs and row == "dense"):
                    continue
                runs.append(run_of(row, target, data, tests, options, seed))
                shown = {key: runs[-1][key] for key in ("seed", "zeros", "seconds", "perplexity")}
                console.print(target, row, shown)
                if options.json:
                    stored = {"options": about, "machine": machine(), "targets": found}
                    write_json(options.json, stored)
    for target, results in found.items():
        show(results, target, options, console)


if __name__ == "__main__":
    main()
