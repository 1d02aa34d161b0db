"""Seconds and memory of every pass that touches experts, on a mixture of random weights, a billion of them.

The model is traced as it is; then each pass runs with the engine's checks. Told are the seconds of each, the
memory held after it and the most so far, beside the size of the weights.

    python benchmarks/mixture_passes.py [--layers 12] [--hidden 1024] [--neurons 3072] [--experts 8]
        [--samples 8] [--threads 2] [--json FILE]
"""

import argparse
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from peak import peak_bytes
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import Context, Program, parse, trace
from sparsify.data.sequences import TextData
from sparsify.disk.files import write_json
from sparsify.measure.machine import machine, machine_line

VOCABULARY, LENGTH = 32000, 128
MERGED = (
    "insert-probes{of=routers}",
    "calibrate{samples=%d batch=4}",
    "choose-clusters{sparsity=0.5}",
    "remove-probes",
    "merge-experts",
)
PRUNED = ("insert-masks{of=experts}", "choose-masks{of=experts sparsity=0.5}", "prune-experts")


def made(options: argparse.Namespace) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=options.hidden,
        intermediate_size=options.neurons,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 128,
        num_local_experts=options.experts,
        num_experts_per_tok=2,
        tie_word_embeddings=True,
    )
    return transformers.MixtralForCausalLM(config).eval()


def size(program: Program) -> int:
    return sum(value.nbytes for _, value in program.tensors())


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (options.samples * LENGTH,), generator=generator)
    context = Context(data=TextData(ids, LENGTH))

    def told(name: str, started: float, program: Program) -> None:
        held = psutil.Process().memory_info().rss
        row = {
            "pass": name, "seconds": time.perf_counter() - started, "held": held,
            "peak": peak_bytes(), "weights": size(program),
        }  # fmt: skip
        rows.append(row)
        print(f"{name}: {row['seconds']:.1f} s", flush=True)

    started = time.perf_counter()
    program = trace(made(options))
    told("make and trace", started, program)
    count = sum(value.numel() for value in program.module.parameters())
    print(f"{count:,} parameters")
    for text in MERGED:
        started = time.perf_counter()
        text = text % options.samples if "%d" in text else text
        program = parse(text).run(program, context)
        told(text, started, program)
    del program
    program = trace(made(options))
    for text in PRUNED:
        started = time.perf_counter()
        program = parse(text).run(program, context)
        told(text, started, program)
    show(rows)
    if options.json is not None:
        write_json(options.json, {"parameters": count, "rows": rows, "machine": machine()})


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(box=SIMPLE_HEAD)
    for column in ("pass", "seconds", "GB held", "GB at most", "GB of weights"):
        table.add_column(column, justify="left" if column == "pass" else "right")
    for row in rows:
        sizes = [f"{row[key] / 1e9:.2f}" for key in ("held", "peak", "weights")]
        table.add_row(row["pass"], f"{row['seconds']:.1f}", *sizes)
    Console().print(table)
    Console().print(machine_line(machine()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (
        ("layers", 12),
        ("hidden", 1024),
        ("neurons", 3072),
        ("experts", 8),
        ("samples", 8),
        ("threads", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
