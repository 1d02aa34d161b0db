"""SMILE on real siblings: one model fine-tuned on several texts, and fused again into one program.

Each text gives a sibling: the base trained on its first four fifths, by branches of a rank that fold into the
linears, or with --branches 0 by all of its weights, embeddings too. Rows are the base, each
sibling, the mean of their weights, and the fused program over a sweep of ranks and of rows of the router;
columns the perplexity of the last fifth of each text. Then what fusing adds to the parameters, against the
formula, and how fast base and fused program are on ONNX Runtime.

    python benchmarks/fused_siblings.py --text prose=FILE --text code=FILE [--model embedded] [--steps 300]
        [--branches 32] [--length 128] [--limit 60] [--threads 1] [--json FILE]
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import Context, Fusion, Program, export, fuse, load_data, load_model, parse, trace
from sparsify.data.sequences import Data, split
from sparsify.disk.files import write_json
from sparsify.ir.views.linear import out_in
from sparsify.ir.views.targets import targeted
from sparsify.measure.inputs import Shape
from sparsify.measure.latency import compare, to_json
from sparsify.measure.machine import machine, machine_line
from sparsify.measure.quality import perplexity
from sparsify.tensors.siblings import added_parameters

RANKS = (4, 16, 64, None)
GATES = (1, 8)
TIMED = Fusion(rank=16)


def trained(base: Program, data: Data, options: argparse.Namespace) -> Program:
    """A sibling: the base trained on one text."""
    how = f"steps={options.steps} batch=8 warmup=0.05"
    text = f"train{{{how} lr=0.0005}}"
    if options.branches:
        lora = f"insert-lora{{rank={options.branches}}}"
        text = f"{lora} | train{{{how} lr=0.003 update=lora}} | fold-lora"
    return parse(text).run(base.clone(), Context(data=data, seed=options.seed))


def mean_of(base: Program, siblings: list[Program]) -> Program:
    """The base with the mean of the siblings in every tensor."""
    made = base.clone()
    with torch.no_grad():
        for path, value in made.tensors():
            if value.is_floating_point():
                value.copy_(torch.stack([one.tensor(path) for one in siblings]).mean(0))
    return made


def grown(base: Program, count: int, how: Fusion) -> int:
    """What the formula says that fusing adds."""
    shapes = [out_in(v, base.tensor(v.weight)).shape for v in targeted(base, ("*",), ())]
    ranks = [min(*shape, how.rank or min(shape)) for shape in shapes]
    return sum(
        added_parameters(*shape, count, rank, min(how.gate, *shape))
        for shape, rank in zip(shapes, ranks, strict=True)
    )


def parameters(program: Program) -> int:
    return sum(value.numel() for value in program.module.parameters())


def timed(base: Program, fused: Program, threads: int) -> list[dict[str, Any]]:
    """Base and fused program in turns on ONNX Runtime, one token and 128."""
    with tempfile.TemporaryDirectory() as scratch:
        paths = {}
        for name, program in (("base", base), ("fused", fused)):
            paths[name] = export(program, Path(scratch) / name, ["onnx"])["onnx"] / "model.onnx"
        rows = compare(
            paths,
            baseline="base",
            shapes=[Shape(1, 1), Shape(1, 128)],
            vocabulary=int(base.source.config["vocab_size"]),
            threads=threads,
        )
        return list(to_json(rows)["timings"])


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    texts = dict(text.split("=", 1) for text in options.text)
    model, tokenizer = load_model(options.model)
    base = trace(model, tokenizer=tokenizer)
    parts = {
        name: split(load_data(path, tokenizer, options.length), 0.8) for name, path in texts.items()
    }
    siblings = {name: trained(base, first, options) for name, (first, _) in parts.items()}
    every = list(siblings.values())
    rows: dict[str, dict[str, Any]] = {}

    def measured(name: str, program: Program) -> None:
        values = {
            text: perplexity(lambda b: program.run(b)[0], last, 8, options.limit).value
            for text, (_, last) in parts.items()
        }
        rows[name] = {"perplexity": values, "parameters": parameters(program)}

    measured("base", base)
    for name, program in siblings.items():
        measured(f"sibling of {name}", program)
    measured("mean of the weights", mean_of(base, every))
    for gate in GATES:
        for rank in RANKS:
            how = Fusion(rank=rank, gate=gate, others="mean")
            made = fuse(base, every, how)
            name = f"fused, rank {rank or 'whole'}, gate {gate}"
            measured(name, made)
            rows[name]["formula"] = parameters(base) + grown(base, len(every), how)
            assert rows[name]["formula"] == rows[name]["parameters"], name
    if len(every) > 1:
        measured(
            "fused, rank whole, gate 8, top 2",
            fuse(base, every, Fusion(None, top=2, others="mean")),
        )
    show(rows, list(texts))
    timings = timed(base, fuse(base, every, TIMED), options.threads)
    for row in timings:
        print(
            f"{row['name']}, {row['tokens']} tokens: {row['median_ms']:.2f} ms, {row['ratio']:.2f}"
        )
    Console().print(machine_line(machine()))
    if options.json is not None:
        write_json(options.json, {"rows": rows, "timings": timings, "machine": machine()})


def show(rows: dict[str, dict[str, Any]], texts: list[str]) -> None:
    table = Table(box=SIMPLE_HEAD)
    for column in ("", *texts, "parameters"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in rows.items():
        values = [f"{row['perplexity'][text]:.2f}" for text in texts]
        table.add_row(name, *values, f"{row['parameters']:,}")
    Console().print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", action="append", required=True, help="NAME=FILE, once a sibling")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--branches", type=int, default=32, help="0 trains whole weights")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
