"""Recipes on several ranks, DDP and FSDP2: the zeros and weights of one process, and memory by rank.

`agree`: each recipe, its trainings cut to some steps, in one process and by torchrun on 2 and 4 ranks that
talk by gloo. Told is the share of entries that are zero in both or in neither, and how far weights lie apart
over the norm of all. Sums are taken in another order on several ranks: entries whose scores are equal but for
that may change places.

`memory`: training of a random decoder (hidden 768, 12 layers, 101 million parameters), plain, and as AST does
it, with moving masks and a dense twin. Told is what one
rank holds beside what there was without weights, by samples of its resident memory during the steps, what
`run --plan` says of it, and seconds a step. All ranks share the cores of one machine, so that time says
little.

    python benchmarks/ranks.py [--what agree,memory] [--text FILE] [--recipes NAME,...] [--ranks 2,4]
        [--steps 8] [--json FILE]
"""

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from resumable import Rows
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from sparsify.measure.machine import machine, machine_line
from sparsify.recipes import recipe as recipe_of

CHOSEN = "structured,semi-structured,ast,cast,losa,sat-cpt"
# Blocks that are freed go back at once, so that resident memory is what is held.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
RESULTS = Path(__file__).parent / "results" / "ranks.json"
WAYS = ("DDP", "FSDP2")
AST = " distill=kl masks=every decay=ars-ste{peak=0.0003}"
# Ways of the table of memory: options of `train`.
MEMORY = {
    "DDP": "",
    "FSDP2": "",
    "FSDP2, layers recomputed": " recompute=layers",
    "DDP, AST": AST,
    "FSDP2, AST": AST,
}


def cut(pipeline: str, steps: int) -> str:
    """A pipeline with short trainings and few samples."""
    text = re.sub(r"train\{steps=\d+", f"train{{steps={steps}", pipeline)
    text = text.replace("reach=1.0", "reach=0.0")  # of so few steps nothing is reached
    return re.sub(r"batch=\d+", "batch=4", text)


def launched(words: list[str], ranks: int, way: str) -> str:
    """What a command prints that runs in some processes."""
    many = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--rdzv-backend=c10d"]
    start = [*many, "--rdzv-endpoint=localhost:0"] if ranks > 1 else []
    more = FSDP if way.startswith("FSDP") else {}
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **more, **EXACT}
    done = subprocess.run(
        [sys.executable, *start, *words],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{way}, {ranks} ranks:\n{done.stdout[-500:]}\n{done.stderr[-3000:]}")
    return done.stdout


def trained(recipe: str, ranks: int, way: str, options: argparse.Namespace) -> dict[str, Any]:
    """The tensors that a recipe leaves."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        text = cut(recipe_of(recipe).text, options.steps)
        words = ["-m", "sparsify", "run", "--model", "embedded", "--data", str(options.text)]
        words += ["--pipeline", text, "--length", "64", "--threads", "1", "--out", str(out)]
        launched(words, ranks, way)
        return load_file(out / "safetensors" / "tensors.safetensors")


def agreement(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, float]:
    """The share of entries that are zero in both or in neither, and the distance of all over their norm."""
    if found.keys() != wanted.keys():
        raise SystemExit("other tensors came out")
    alike = size = 0
    apart = norm = 0.0
    for path, value in wanted.items():
        alike += int(((found[path] == 0) == (value == 0)).sum())
        size += value.numel()
        apart += float((found[path].double() - value.double()).square().sum())
        norm += float(value.double().square().sum())
    return {"zeros": alike / size, "apart": (apart / norm) ** 0.5}


def agree(options: argparse.Namespace, rows: Rows) -> None:
    for recipe in options.recipes.split(","):
        one = None
        for ranks in map(int, options.ranks.split(",")):
            for way in WAYS:
                name = f"{recipe}, {ranks} ranks, {way}"
                if rows.get(name):
                    continue
                if one is None:
                    one = trained(recipe, 1, "one process", options)
                started = time.perf_counter()
                found = agreement(trained(recipe, ranks, way, options), one)
                rows.put(name, **found, seconds=time.perf_counter() - started)
                print(name, rows.get(name), flush=True)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """A progress that notes when steps end, and the most memory held between the first and the last."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.most = 0
        self._training = False

    def start(self, title: str, total: int) -> None:
        """Begin to look with the steps of training."""
        self._training = title == "train"
        if self._training:
            self.ends.clear()
            threading.Thread(target=self._look, daemon=True).start()

    def advance(self, **figures: float) -> None:
        """One step further."""
        self.ends.append(time.perf_counter())

    def rename(self, title: str) -> None:
        """Nothing is shown."""

    def _look(self) -> None:
        while self._training:
            if len(self.ends) > 1:  # moments are there from the first step on
                self.most = max(self.most, resident())
            time.sleep(0.005)


def worker(options: argparse.Namespace) -> None:
    """One rank of the table of memory; the first prints the figures of all."""
    from accelerate import PartialState
    from transformers import LlamaConfig, LlamaForCausalLM

    from sparsify import Context, parse, ranks, trace
    from sparsify.data.sequences import TextData
    from sparsify.train.plan import Ranks, Step, plan
    from sparsify.train.shards import sharding

    state = PartialState(cpu=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": 10240}
    program = trace(LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval())
    gc.collect()
    before = resident() - sum(value.nbytes for _, value in program.tensors())
    data = TextData(torch.randint(3, 10000, (options.steps * 4 * 128,)), 128)
    masks, twin = "", 0
    if options.more == AST:
        masks = "insert-masks | choose-masks{pattern=2:4} | "
        twin = sum(value.nbytes for value in program.module.parameters())
    watch = Watch()
    context = Context(data=data, progress=watch)
    training = f"train{{steps={options.steps} batch=4{options.more}}}"
    program = parse(f"{masks}{training}").run(program, context)
    watch._training = False
    seconds = (watch.ends[-1] - watch.ends[0]) / (len(watch.ends) - 1)
    loss = context.figures["train"][-1]["loss"]
    for value in program.module.parameters():
        value.requires_grad_(True)
    step = Step(4, 128, recompute="layers" if "layers" in options.more else "none", twin=twin)
    planned = plan(program, step, Ranks(ranks.count(), sharded=sharding())).peak
    figures = {"held": watch.most - before, "planned": planned, "seconds": seconds, "loss": loss}
    each = ranks.gathered(figures)
    if state.is_main_process:
        print("FIGURES", json.dumps(each))
    state.destroy_process_group()


def memory(options: argparse.Namespace, rows: Rows) -> None:
    for ranks in (1, *map(int, options.ranks.split(","))):
        for way, more in MEMORY.items():
            name = f"memory, {ranks} ranks, {way}"
            if rows.get(name) or (ranks == 1 and way in ("FSDP2", "FSDP2, AST")):
                continue
            words = [__file__, "--worker", "--steps", "6", f"--more={more}"]
            line = launched(words, ranks, way).rpartition("FIGURES ")[2].splitlines()[0]
            each = json.loads(line)
            rows.put(
                name,
                held=max(rank["held"] for rank in each),
                planned=each[0]["planned"],
                step=max(rank["seconds"] for rank in each),
                loss=each[0]["loss"],
            )
            print(name, rows.get(name), flush=True)


def show(rows: dict[str, dict[str, Any]]) -> None:
    console = Console(width=120)
    console.print(machine_line(machine()))
    table = Table(box=SIMPLE_HEAD)
    for column in ("run", "zeros alike", "weights apart", "GB a rank", "planned", "s a step"):
        table.add_column(column, justify="left" if column == "run" else "right", no_wrap=True)
    for name, row in rows.items():
        if "zeros" in row:
            table.add_row(name, f"{row['zeros']:.6f}", f"{row['apart']:.1e}", "", "", "")
        else:
            sizes = (f"{row[key] / 1e9:.2f}" for key in ("held", "planned"))
            table.add_row(name, "", "", *sizes, f"{row['step']:.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", default="agree,memory")
    parser.add_argument("--text", type=Path, default=Path("text.txt"))
    parser.add_argument("--recipes", default=CHOSEN)
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--more", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    rows = Rows(options.json)
    for what in options.what.split(","):
        {"agree": agree, "memory": memory}[what](options, rows)
    show(rows.rows)


if __name__ == "__main__":
    main()
