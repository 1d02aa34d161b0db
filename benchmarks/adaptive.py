"""Perplexity of the embedded model at 2:4: one-shot, and retrained with fixed and with moving masks.

Retrained on the text the model was trained on, rebuilt from the two Debian packages named in
`sparsify/embedded/README.md`, unpacked into folders; measured on its held-out text and on any other that
is given. Every trained row takes the same sequences in the same order for the same number of steps, at the
learning rate and pull that ROWS gives. CAST refuses runs in which its masked weights cannot reach zero.
With `--json` a run that was stopped goes on after the last row it had finished.

    python benchmarks/adaptive.py --sources FOLDER --sources FOLDER [--text FILE] [--json FILE]
"""

import argparse
import statistics
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import Context, Program, load_data, load_model, parse, save, trace
from sparsify.data.sequences import Data
from sparsify.disk.files import read_json, write_json
from sparsify.measure.quality import perplexity

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train_embedded import read_source, split

Results = dict[str, list[dict[str, Any]]]
KD = "task=0.33 distill=kl{weight=0.67 temperature=2.0}"
EVERY = "masks=every{steps=10}"
CHOSEN = "insert-masks | choose-masks{pattern=2:4}"
BOOSTED = f"{CHOSEN} | insert-slorb{{k=16}} | choose-slorb"
SCALED = "insert-masks | insert-scales"
# Name, what chooses the masks, and the options of `train` (none: one-shot).
ROWS = {
    "dense": ("", ""),
    "magnitude": (CHOSEN, ""),
    "wanda": ("insert-masks | choose-masks{score=wanda pattern=2:4}", ""),
    "sparsegpt": ("insert-masks | choose-masks{score=sparsegpt pattern=2:4}", ""),
    "naive: fixed mask, no distillation": (CHOSEN, "lr=0.0006"),
    "fixed mask": (CHOSEN, f"lr=0.0006 {KD}"),
    "AST without distillation": (CHOSEN, f"lr=0.0004 {EVERY} decay=ars-ste{{peak=0.0003}}"),
    "static SR-STE": (CHOSEN, f"lr=0.0004 {KD} {EVERY} decay=sr-ste{{peak=0.0003}}"),
    "AST": (CHOSEN, f"lr=0.0004 {KD} {EVERY} decay=ars-ste{{peak=0.0003}}"),
    "AST-boosted, k=16": (BOOSTED, f"lr=0.0004 {KD} {EVERY} decay=ars-ste{{peak=0.0003}}"),
    "CAST": (SCALED, f"lr=0.001 {KD} {EVERY} decay=adams{{peak=0.001 reach=1.0}}"),
    "CAST without scales": (
        "insert-masks",
        f"lr=0.001 {KD} {EVERY} decay=adams{{peak=0.001 reach=1.0}}",
    ),
    "CAST with SR-STE": (
        f"{CHOSEN} | insert-scales",
        f"lr=0.0004 {KD} {EVERY} decay=sr-ste{{peak=0.0003}}",
    ),
    "CAST, plain L1": (
        SCALED,
        f"lr=0.001 {KD} {EVERY} decay=adams{{peak=0.001 reach=1.0 proportional=false}}",
    ),
}


def compiled(
    name: str, data: Data, seed: int, options: argparse.Namespace
) -> tuple[Program, list[dict[str, float]]]:
    """The program of one row, and its figures by step."""
    choice, how = ROWS[name]
    model, tokenizer = load_model("embedded")
    program = trace(model, tokenizer=tokenizer)
    if not choice:
        return program, []
    text = choice
    if "wanda" in choice or "sparsegpt" in choice:
        gram = "{gram=true}" if "sparsegpt" in choice else ""
        text = f"insert-probes{gram} | calibrate{{samples=128}} | {text} | remove-probes"
    if how:
        text += f" | train{{steps={options.steps} batch={options.batch} warmup=0.1 {how}}}"
    text += " | fold-scales" if "insert-scales" in choice else ""
    context = Context(data=data, seed=seed)
    program = parse(f"{text} | fold-masks").run(program, context)
    return program, context.figures.get("train", [])


def measured(program: Program, data: Data) -> float:
    """Perplexity of a program on the first 1500 sequences of a text."""
    return perplexity(lambda batch: program.run(batch)[0], data, limit=1500).value


def show(results: Results, options: argparse.Namespace, console: Console) -> None:
    """The table of all rows."""
    title = f"perplexity, context {options.length}, {options.steps} steps of {options.batch}"
    table = Table(title=title, box=SIMPLE_HEAD)
    texts = list(next(iter(results.values()))[0]["perplexity"])
    for column in ("row", "seeds", *texts, "gap closed", "above a fixed mask, by seed"):
        table.add_column(column, no_wrap=True)
    first = texts[0]
    ends = [values_of(results, name, first) for name in ("wanda", "dense")]
    fixed = values_of(results, "fixed mask", first)
    for name, runs in results.items():
        cells = []
        for text in texts:
            cells.append(cell(values_of(results, name, text)))
        wanda, dense = (end[0] if end else float("nan") for end in ends)
        own = values_of(results, name, first)
        cells.append(f"{(wanda - statistics.mean(own)) / (wanda - dense):.1%}")
        trained = bool(ROWS[name][1]) and len(own) == len(fixed)
        pairs = zip(own, fixed, strict=True) if trained else ()
        cells.append(" ".join(f"{value - other:+.2f}" for value, other in pairs))
        table.add_row(name, str(len(runs)), *cells)
    console.print(table)
    console.print(f"in brackets: largest minus smallest over the seeds; gap and seeds: {first}")


def cell(values: list[float]) -> str:
    """The mean over seeds, and the largest minus the smallest where there are several."""
    spread = f" ({max(values) - min(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def values_of(results: Results, name: str, text: str) -> list[float]:
    """The perplexities of a row on a text, by seed."""
    runs = sorted(results.get(name, []), key=lambda run: run["seed"])
    return [run["perplexity"][text] for run in runs]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", type=Path, action="append", required=True)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--row", action="append", choices=list(ROWS), help="one row alone; repeat")
    parser.add_argument("--keep", type=Path, help="where to save the programs of the first seed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data, tests = texts_of(options)
    console = Console(width=140)
    results: Results = {}
    if options.json and options.json.is_file():
        results = read_json(options.json)["rows"]
    for seed in [int(word) for word in options.seeds.split(",")]:
        for name in options.row or ROWS:
            runs = results.setdefault(name, [])
            if any(run["seed"] == seed for run in runs) or (runs and not ROWS[name][1]):
                continue  # done before, or nothing in it is drawn
            runs.append(run_of(name, data, tests, seed, options))
            console.print(name, seed, {k: v for k, v in runs[-1].items() if k != "figures"})
            if options.json:
                write_json(options.json, {"options": settings(options), "rows": results})
    show(results, options, console)


def settings(options: argparse.Namespace) -> dict[str, int]:
    """What a figure of the table depends on besides its row."""
    return {name: getattr(options, name) for name in ("steps", "batch", "length")}


def texts_of(options: argparse.Namespace) -> tuple[Data, dict[str, Data]]:
    """The text to train on, and those to measure on by name."""
    _, tokenizer = load_model("embedded")
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "corpus.txt"
        training, _ = split([read_source(folder) for folder in options.sources], 0)
        corpus.write_text("\n".join(training), "utf-8")
        data = load_data(str(corpus), tokenizer, options.length)
    held_out = str(resources.files("sparsify") / "embedded" / "heldout.txt")
    tests = {"held-out": load_data(held_out, tokenizer, options.length)}
    if options.text:
        tests[options.text.name] = load_data(str(options.text), tokenizer, options.length)
    return data, tests


def run_of(
    name: str, data: Data, tests: dict[str, Data], seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One row with one seed: perplexities, seconds, and what its training told at the end."""
    started = time.perf_counter()
    program, figures = compiled(name, data, seed, options)
    if options.keep and not (options.keep / name).exists():
        save(program, options.keep / name)
    return {
        "seed": seed,
        "how": ROWS[name][1],
        "seconds": time.perf_counter() - started,
        "perplexity": {test: measured(program, text) for test, text in tests.items()},
        "figures": [row for row in figures if "flips" in row],
    }


if __name__ == "__main__":
    main()
