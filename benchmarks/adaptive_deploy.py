"""A model trained to 2:4 as it is deployed: packed, exported, measured and timed on ONNX Runtime.

    python benchmarks/adaptive.py ... --keep KEPT
    python benchmarks/adaptive_deploy.py KEPT/AST [--threads 1] [--rounds 25] [--json FILE]

The program is the dense-with-zeros one that training left; the rows pack it in float32, int8 and int4.
Perplexity is of the held-out text of the embedded model, once by torch and once by ONNX Runtime.
"""

import argparse
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import Context, Program, export, load, load_data, load_model, parse, trace
from sparsify.commands.artifacts import artifacts
from sparsify.data.sequences import Data
from sparsify.disk.files import write_json
from sparsify.measure.inputs import Shape
from sparsify.measure.latency import compare, to_json
from sparsify.measure.machine import machine, machine_line
from sparsify.measure.quality import perplexity

LENGTH = 128
ROWS = {
    "2:4, zeros in place": "",
    "2:4 packed, float32": "pack-nm",
    "2:4 packed, int8": "insert-quantizers{values=int8} | choose-scales | pack-nm{values=int8}",
    "2:4 packed, int4": (
        "insert-quantizers{values=int4 group=64} | choose-scales{by=mse} | pack-nm{values=int4}"
    ),
}


def rows_of(folder: Path, data: Data) -> dict[str, Program]:
    """The dense model, and the trained one packed in every way."""
    model, tokenizer = load_model("embedded")
    found = {"dense": trace(model, tokenizer=tokenizer)}
    for name, text in ROWS.items():
        program = load(folder)
        found[name] = parse(text).run(program, Context(data=data)) if text else program
    return found


def measured(program: Program, path: Path, data: Data, limit: int) -> dict[str, Any]:
    """Perplexity by torch and by ONNX Runtime, and the bytes of the ONNX file."""
    (artifact,) = artifacts(str(path.parent))
    return {
        "torch": perplexity(lambda batch: program.run(batch)[0], data, limit=limit).value,
        "onnxruntime": perplexity(lambda batch: artifact.run(batch)[0], data, limit=limit).value,
        "bytes": sum(part.stat().st_size for part in path.parent.glob("model.onnx*")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--limit", type=int, default=400, help="sequences to measure on")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load_model("embedded")
    held_out = str(resources.files("sparsify") / "embedded" / "heldout.txt")
    data = load_data(held_out, tokenizer, LENGTH)
    table = Table(title=f"perplexity: held-out, context {LENGTH}", box=SIMPLE_HEAD)
    for column in ("model", "torch", "ONNX Runtime", "MB", "1 token", "128 tokens"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    with tempfile.TemporaryDirectory() as scratch:
        programs = rows_of(options.folder, data)
        paths = {
            name: export(program, Path(scratch) / str(number), ["onnx"])["onnx"] / "model.onnx"
            for number, (name, program) in enumerate(programs.items())
        }
        found = {n: measured(p, paths[n], data, options.limit) for n, p in programs.items()}
        timings = compare(
            paths,
            "dense",
            [Shape(tokens=1), Shape(tokens=128)],
            vocabulary=model.config.vocab_size,
            threads=options.threads,
            rounds=options.rounds,
        )
    for name, row in found.items():
        speeds = [
            f"{t.ratio:.2f} ({t.ratio_low:.2f}-{t.ratio_high:.2f})"
            for t in timings
            if t.name == name
        ]
        table.add_row(
            name,
            f"{row['torch']:.3f}",
            f"{row['onnxruntime']:.3f}",
            f"{row['bytes'] / 1e6:.1f}",
            *speeds,
        )
    console = Console(width=140)
    console.print(table)
    console.print(f"speed against dense, {options.threads} thread; {machine_line(machine())}")
    if options.json:
        write_json(options.json, {**to_json(timings), "rows": found})


if __name__ == "__main__":
    main()
