"""The decode steps of generation.py's files in one process, a few tokens of each in turn.

Whole generations in processes of their own are minutes apart, and a machine that others share is not the
same for so long. Here every file is open on ONNX Runtime at once and the turns are fractions of a second,
so that ratios hold; threads that wait between steps do not spin. onnxruntime-genai's own loop and
transformers are left out: a graph of the former's builder runs like ours, on shared caches.

    python benchmarks/generation.py --keep DIR ...
    python benchmarks/generation_turns.py DIR [--threads 1,2] [--rounds 20] [--json FILE]
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from generation import spread
from generation_models import DENSE, Row, stored_rows
from generation_worker import empty_pasts
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import native
from sparsify.disk.files import write_json
from sparsify.measure.latency import turn
from sparsify.measure.machine import machine, machine_line
from sparsify.runtime.caches import Caches, GrowingCaches, SharedCaches
from sparsify.runtime.session import SHARED_CACHE, onnxruntime_session

CALM = {"session.force_spinning_stop": "1"}
Seconds = dict[str, list[float]]


def stepper(
    row: Row, capacity: int, threads: int, options: argparse.Namespace
) -> Callable[[int, int], None]:
    """Opens a file; the call runs `count` tokens behind `past` others."""
    session = onnxruntime_session(row.folder / "model.onnx", threads=threads, settings=CALM)
    known = SHARED_CACHE in session.get_modelmeta().custom_metadata_map
    shared = known or row.kind == "genai"
    heads = max(1, options.hidden // options.head_size // 2)
    pasts = empty_pasts(session, capacity * shared, heads, options.head_size)
    empty = {name: ort.OrtValue.ortvalue_from_numpy(past) for name, past in pasts.items()}
    caches: Caches = SharedCaches(session, empty) if shared else GrowingCaches(session, empty)
    names = {entry.name for entry in session.get_inputs()}

    def step(past: int, count: int) -> None:
        feeds = {
            "input_ids": np.full((1, count), 5),
            "attention_mask": np.ones((1, past + count), np.int64),
            "position_ids": np.arange(past, past + count)[None],
        }
        caches.step({name: value for name, value in feeds.items() if name in names})

    return step


def measured(found: list[Row], threads: int, options: argparse.Namespace) -> Seconds:
    """Seconds a token of each file in each round: the median of its turn."""
    capacity = options.prompt + options.rounds * options.tokens
    steps = {row.name: stepper(row, capacity, threads, options) for row in found}
    seconds: Seconds = {name: [] for name in steps}
    for step in steps.values():
        step(0, options.prompt)
    past = options.prompt
    for number in range(options.rounds):
        for name in turn([*steps], number):
            taken = []
            for place in range(past, past + options.tokens):
                started = time.perf_counter()
                steps[name](place, 1)
                taken.append(time.perf_counter() - started)
            seconds[name].append(float(np.median(taken)))
        past += options.tokens
    return seconds


def table_of(seconds: Seconds, threads: int) -> Table:
    """Tokens a second, and how many times as fast as others, round by round."""
    rivals = (name for name in seconds if "dense" in name and name.endswith("int4"))
    rival = min(rivals, key=lambda name: float(np.median(seconds[name])))
    table = Table(title=f"{threads} threads; best dense int4: {rival}", box=SIMPLE_HEAD)
    for column in ("model", "tokens/s", "of dense float32", "of best dense int4"):
        table.add_column(column, no_wrap=True, justify="left" if column == "model" else "right")
    for name, own in seconds.items():
        cells = [f"{1 / float(np.median(own)):.1f}"]
        for other in (DENSE, rival):
            cells.append(spread(np.divide(seconds[other], own), ".2f"))
        table.add_row(name, *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="what generation.py has kept")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=8, help="of a turn")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--head-size", type=int, default=128)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = [row for row in stored_rows(options.folder) if row.kind != "transformers"]
    console, results = Console(width=120), dict[int, Any]()
    console.print(machine_line(machine()), f"kernels: {native.isa()}", soft_wrap=True)
    for threads in map(int, options.threads.split(",")):
        results[threads] = measured(found, threads, options)
        console.print(table_of(results[threads], threads))
    if options.json:
        kept = {key: str(value) for key, value in vars(options).items()}
        write_json(options.json, {"options": kept, "machine": machine(), "threads": results})


if __name__ == "__main__":
    main()
