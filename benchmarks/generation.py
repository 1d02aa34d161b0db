"""Generation end to end: bytes on disk, time to the first token, tokens a second, peak memory, error.

One Llama-type model of random weights, written in every way: by us dense, with half of the heads and
channels removed, with packed weights; by Optimum and by the model builder of onnxruntime-genai in
environments of their own; by `quantize_dynamic`; and as transformers runs it. A round measures each of them
once, in a process of its own that generates twice and reports the second time; ratios are taken within a
round. The error is `|y - y'| / |y|` over the logits of the prompt: y' of the file, y of the float32 model
with the same weights removed, run by torch. What removing costs shows only on a trained model.

    python -m venv genai && genai/bin/pip install onnxruntime-genai onnx-ir torch transformers
    python -m venv optimum && optimum/bin/pip install "optimum-onnx[onnxruntime]" torch
    python benchmarks/generation.py --peer genai/bin/python --optimum optimum/bin/python --json FILE

With `--keep DIR` the folders stay there, and a second run takes them as they are.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from child import printed_by
from generation_models import DENSE, Row, rows, store_rows, stored_rows
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import native
from sparsify.disk.files import write_json
from sparsify.measure.latency import turn
from sparsify.measure.machine import machine, machine_line

WORKER = Path(__file__).with_name("generation_worker.py")
Answers = dict[str, list[dict[str, Any]]]


def worker(python: str, *words: object) -> str:
    """What one call of the worker prints."""
    command = [python, str(WORKER), *map(str, words)]
    return printed_by(" ".join(command[2:4]), command)


def made(options: argparse.Namespace, place: Path, ids: Path) -> list[Row]:
    """The folders to measure: those that stand there, or new ones."""
    if found := stored_rows(place):
        return found
    for row in rows(options, place, ids):
        print(f"written: {row.name}, {row.size / 1e6:.1f} MB", file=sys.stderr, flush=True)
        found.append(row)
    store_rows(found, place)
    return found


def error(row: Row, ids: Path, place: Path, options: argparse.Namespace) -> float | None:
    """The relative error of the logits of the prompt; None for what is no ONNX file."""
    if row.kind == "transformers":
        return None
    out = place / "logits.npy"
    heads = max(1, options.hidden // options.head_size // 2)
    worker(sys.executable, "logits", row.folder, ids, out, heads, options.head_size)
    found, exact = (np.load(file).astype(np.float64) for file in (out, row.exact))
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def measured(found: Sequence[Row], ids: Path, threads: int, options: argparse.Namespace) -> Answers:
    """What the worker tells of each row in each round; the next round begins with another row."""
    by_name = {row.name: row for row in found}
    answers: Answers = {name: [] for name in by_name}
    for number in range(options.rounds):
        for name in turn([*by_name], number):
            row = by_name[name]
            python = options.peer if row.kind == "genai" else sys.executable
            said = worker(python, row.kind, row.folder, ids, options.tokens, threads)
            answers[name].append(json.loads(said.splitlines()[-1]))
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    return answers


def rates(runs: Sequence[dict[str, Any]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Tokens a second of each run, the first token left out."""
    return np.array([len(run["others"]) / sum(run["others"]) for run in runs])


def spread(values: Any, form: str) -> str:
    low, middle, high = np.percentile(values, [10, 50, 90])
    return f"{middle:{form}} ({low:{form}}-{high:{form}})"


def table_of(
    found: Sequence[Row], answers: Answers, errors: dict[str, float | None], threads: int
) -> Table:
    """The table of a number of threads."""
    rival = max(
        (row.name for row in found if row.name.endswith("int4") and "dense" in row.name),
        key=lambda name: float(np.median(rates(answers[name]))),
    )
    title = f"{threads} threads; best dense int4: {rival}"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", no_wrap=True)
    for column in (
        "MB",
        "first token ms",
        "tokens/s",
        "of dense float32",
        "of best dense int4",
        "peak MB",
        "logit error",
    ):
        table.add_column(column, no_wrap=True, justify="right")
    for row in found:
        runs, rate = answers[row.name], rates(answers[row.name])
        table.add_row(
            row.name,
            f"{row.size / 1e6:.1f}",
            spread([run["first"] * 1e3 for run in runs], ".0f"),
            spread(rate, ".1f"),
            spread(rate / rates(answers[DENSE]), ".2f"),
            spread(rate / rates(answers[rival]), ".2f"),
            f"{max(run['peak'] for run in runs) / 1e6:.0f}",
            "" if errors[row.name] is None else f"{errors[row.name]:.1e}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--head-size", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--peer", help="the interpreter of an environment with onnxruntime-genai")
    parser.add_argument("--optimum", help="the interpreter of an environment with optimum-onnx")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console(width=200)
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        place = (options.keep or Path(scratch)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        ids = place / "ids.npy"
        draw = np.random.default_rng(0)
        np.save(ids, draw.integers(3, options.vocabulary, (1, options.prompt)))
        found = made(options, place, ids)
        errors = {row.name: error(row, ids, place, options) for row in found}
        sizes = {row.name: row.size for row in found}
        console.print(machine_line(machine()), f"kernels: {native.isa()}", soft_wrap=True)
        for threads in map(int, options.threads.split(",")):
            results[threads] = measured(found, ids, threads, options)
            console.print(table_of(found, results[threads], errors, threads), soft_wrap=True)
    if options.json:
        kept = {key: str(value) for key, value in vars(options).items()}
        facts = {"options": kept, "machine": machine(), "isa": native.isa()}
        write_json(options.json, {**facts, "bytes": sizes, "errors": errors, "threads": results})


if __name__ == "__main__":
    main()
