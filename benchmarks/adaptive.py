"""Perplexity of the embedded model at 2:4: one-shot, and retrained with fixed and with moving masks.

Retrained on the text the model was trained on, rebuilt from the two Debian packages named in
`sparsify/embedded/README.md`, unpacked into folders; measured on its held-out text and on any other that
is given. Every trained row takes the same sequences in the same order for the same number of steps, at the
learning rate and pull that ROWS gives. CAST refuses runs in which its masked weights cannot reach zero.

    python benchmarks/adaptive.py --sources FOLDER --sources FOLDER [--text FILE] [--steps 400] [--seeds 3]
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

from sparsify import Context, Program, load_data, load_model, parse, trace
from sparsify.errors import SparsifyError
from sparsify.files import write_json
from sparsify.measure.quality import perplexity
from sparsify.train.data import Data

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train_embedded import read_source, split

KD = "task=0.33 distill=kl{weight=0.67 temperature=2.0}"
EVERY = "masks=every{steps=10}"
CHOSEN = "insert-masks | choose-masks{pattern=2:4}"
BOOSTED = f"{CHOSEN} | insert-slorb{{k=16}} | choose-slorb"
# Name, what chooses the masks, and the options of `train` (none: one-shot).
ROWS = (
    ("dense", "", ""),
    ("magnitude", CHOSEN, ""),
    ("wanda", "insert-masks | choose-masks{score=wanda pattern=2:4}", ""),
    ("sparsegpt", "insert-masks | choose-masks{score=sparsegpt pattern=2:4}", ""),
    ("naive: fixed mask, no distillation", CHOSEN, "lr=0.001"),
    ("fixed mask", CHOSEN, f"lr=0.001 {KD}"),
    ("AST without distillation", CHOSEN, f"lr=0.0003 {EVERY} decay=ars-ste{{peak=0.0003}}"),
    ("static SR-STE", CHOSEN, f"lr=0.0003 {KD} {EVERY} decay=sr-ste{{peak=0.0003}}"),
    ("AST", CHOSEN, f"lr=0.0003 {KD} {EVERY} decay=ars-ste{{peak=0.0003}}"),
    ("AST-boosted, k=16", BOOSTED, f"lr=0.0003 {KD} {EVERY} decay=ars-ste{{peak=0.0003}}"),
    (
        "CAST",
        "insert-masks | insert-scales",
        f"lr=0.002 {KD} {EVERY} decay=adams{{peak=0.001 reach=1.0}}",
    ),
)


def compiled(
    choice: str, options: str, steps: int, data: Data, seed: int
) -> tuple[Program, list[dict[str, float]]]:
    """The program of one row, and its figures by step."""
    model, tokenizer = load_model("embedded")
    program = trace(model, tokenizer=tokenizer)
    if not choice:
        return program, []
    text = choice
    if "wanda" in choice or "sparsegpt" in choice:
        gram = "{gram=true}" if "sparsegpt" in choice else ""
        text = f"insert-probes{gram} | calibrate{{samples=128}} | {text} | remove-probes"
    if options:
        text += f" | train{{steps={steps} batch=16 warmup=0.1 {options}}}"
    text += " | fold-scales" if "insert-scales" in choice else ""
    context = Context(data=data, seed=seed)
    program = parse(f"{text} | fold-masks").run(program, context)
    return program, context.figures.get("train", [])


def measured(program: Program, data: Data) -> float:
    """Perplexity of a program."""
    return perplexity(lambda batch: program.run(batch)[0], data, limit=150).value


def show(
    results: list[dict[str, Any]],
    tests: dict[str, Data],
    options: argparse.Namespace,
    console: Console,
) -> None:
    """The table of all rows."""
    table = Table(
        title=f"perplexity, context {options.length}, {options.steps} steps of 16", box=SIMPLE_HEAD
    )
    for column in ("row", *tests):
        table.add_column(column, no_wrap=True)
    for row in results:
        cells = []
        for values in row["perplexity"].values():
            spread = f" ({max(values) - min(values):.2f})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}")
        table.add_row(str(row["row"]), *cells)
    console.print(table)
    console.print("in brackets: largest minus smallest over the seeds")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", type=Path, action="append", required=True)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", help="words that the names of the rows wanted begin with")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
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
    console = Console(width=140)
    results: list[dict[str, Any]] = []
    wanted = tuple(options.rows.split(",")) if options.rows else ("",)
    seeds = [int(word) for word in options.seeds.split(",")]
    for name, choice, how in ROWS:
        if not name.startswith(wanted):
            continue
        found: dict[str, list[float]] = {test: [] for test in tests}
        started = time.perf_counter()
        figures: list[dict[str, float]] = []
        try:
            for seed in seeds if how else seeds[:1]:
                program, figures = compiled(choice, how, options.steps, data, seed)
                for test, text in tests.items():
                    found[test].append(measured(program, text))
        except SparsifyError as error:  # CAST refuses a run that is too short for it
            console.print(f"{name}: {error}")
            continue
        seconds = time.perf_counter() - started
        results.append(
            {"row": name, "how": how, "perplexity": found, "seconds": seconds, "figures": figures}
        )
        console.print(
            name,
            {t: [round(v, 2) for v in values] for t, values in found.items()},
            f"{seconds:.0f} s",
        )
        if options.json:
            write_json(
                options.json, {"steps": options.steps, "length": options.length, "rows": results}
            )
    show(results, tests, options, console)


if __name__ == "__main__":
    main()
