"""How fast a model with half of its heads and channels removed runs on ONNX Runtime against its dense twin.

A decoder of hidden 512, 8 layers, 8 query heads on 4 KV heads, random weights (speed does not depend
on their values). Variants: dense; the same masks folded in place, so zeros that nobody removes;
physically pruned.

    python benchmarks/structured_latency.py [--tokens 128] [--threads 1] [--rounds 40] [--json FILE]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from sparsify import export, parse, trace
from sparsify.describe.count import count
from sparsify.disk.files import write_json
from sparsify.measure.inputs import Shape
from sparsify.measure.latency import compare, to_json
from sparsify.measure.machine import machine, machine_line

VOCABULARY = 4096
MASKS = (
    "insert-masks{of=heads,channels} | choose-masks{of=heads sparsity=0.5} | "
    "choose-masks{of=channels sparsity=0.5}"
)
VARIANTS = {
    "dense": "",
    "zeros in place": MASKS + " | fold-masks{of=heads,channels}",
    "pruned": MASKS + " | prune-heads | prune-channels",
}


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
            vocab_size=VOCABULARY,
        )
    ).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", default="128", help="lengths, separated by commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    lengths = [int(word) for word in options.tokens.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        paths, counts = {}, {}
        for number, (name, text) in enumerate(VARIANTS.items()):
            program = trace(model())
            if text:
                program = parse(text).run(program)
            paths[name] = (
                export(program, Path(scratch) / str(number), ["onnx"])["onnx"] / "model.onnx"
            )
            counts[name] = count(program, 1, lengths[0])
        timings = compare(
            paths,
            "dense",
            [Shape(tokens=length) for length in lengths],
            vocabulary=VOCABULARY,
            threads=options.threads,
            rounds=options.rounds,
        )
        sizes = {name: path.stat().st_size for name, path in paths.items()}
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("variant", "tokens", "ms (10-90 %)", "speed (10-90 %)", "multiply-adds", "MB"):
        table.add_column(column, no_wrap=True)
    for row in timings:
        table.add_row(
            row.name,
            str(row.tokens),
            f"{row.median_ms:.2f} ({row.p10_ms:.2f}-{row.p90_ms:.2f})",
            f"{row.ratio:.2f} ({row.ratio_low:.2f}-{row.ratio_high:.2f})",
            f"{counts[row.name].multiply_adds / 1e9:.3f} G at {lengths[0]}",
            f"{sizes[row.name] / 1e6:.1f}",
        )
    console = Console()
    console.print(table)
    console.print(machine_line(machine()), f"{options.threads} thread(s)", soft_wrap=True)
    if options.json:
        result = {**to_json(timings), "threads": options.threads, "bytes": sizes}
        result["counts"] = {name: value.to_json() for name, value in counts.items()}
        write_json(options.json, result)


if __name__ == "__main__":
    main()
