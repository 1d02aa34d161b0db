"""TRAWL on a model: which layer and rank lower the perplexity, if any, and what factors cost and save.

Every layer's up and down matrices (or attention's, `--stack attention`) are approximated together at each
rank, one layer at a time. The first half of the text chooses a layer and a rank; perplexity of the second
half is shown beside it, for every pair, so that the median over layers can be told, too. Then all layers at
each rank, as factors: perplexity, bytes of the ONNX file, and how much faster than the dense model it runs
at 1 and 128 tokens, in one process and taking turns.

    python benchmarks/tensors.py --data FILE [--model embedded] [--ranks 16,32,64,128] [--layers 0,-1]
        [--ignore GLOBS] [--limit 32] [--length 128] [--form tucker] [--threads 1] [--json FILE]
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from resumable import Rows
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import Context, Program, export, load_data, load_model, parse, trace
from sparsify.data.sequences import Data, split
from sparsify.ir.facts.multiply_adds import multiply_adds
from sparsify.ir.views.targets import targeted
from sparsify.measure.inputs import Shape
from sparsify.measure.latency import compare
from sparsify.measure.machine import machine, machine_line
from sparsify.measure.quality import perplexity
from sparsify.select.stacks import stacks

DENSE = "dense"


def edit(options: argparse.Namespace, rank: int, layers: str = "") -> str:
    """The pass that approximates the stacks of some layers, or of all."""
    some = f" layers={layers}" if layers else ""
    some += f" ignore={','.join(options.ignore)}" if options.ignore else ""
    return f"choose-tensors{{stack={options.stack} form={options.form} rank={rank}{some}}}"


def halves(program: Program, parts: tuple[Data, Data], limit: int) -> dict[str, float]:
    """Perplexity on what chooses and on what is held out."""
    return {
        name: perplexity(lambda batch: program.run(batch)[0], part, 8, limit).value
        for name, part in zip(("chooses", "held"), parts, strict=True)
    }


def sweep(
    program: Program, rows: Rows, parts: tuple[Data, Data], options: argparse.Namespace
) -> None:
    """Every layer at every rank, alone."""
    if not rows.get(DENSE):
        rows.put(DENSE, **halves(program, parts, options.limit))
    views = targeted(program, ("*",), options.ignore)
    count = len(stacks(program, options.stack, views))
    for layer in options.layers or range(count):
        for rank in options.ranks:
            name = f"layer {layer % count} at {rank}"
            if not rows.get(name):
                context = Context(seed=options.seed)
                made = parse(edit(options, rank, str(layer))).run(program.clone(), context)
                error = context.figures["choose-tensors"][0]["error"]
                found = halves(made, parts, options.limit)
                rows.put(name, layer=layer % count, rank=rank, error=error, **found)
                print(name, rows.get(name), flush=True)


def factored(
    program: Program, rows: Rows, parts: tuple[Data, Data], options: argparse.Namespace
) -> None:
    """All layers at a rank: perplexity, and the factors on ONNX Runtime beside the dense model."""
    with tempfile.TemporaryDirectory() as scratch:
        dense: Path | None = None
        for rank in options.ranks:
            name = f"all layers at {rank}"
            if rows.get(name):
                continue
            if dense is None:
                dense = _file(program, Path(scratch) / DENSE)
            text = f"{edit(options, rank)} | split-linears"
            made = parse(text).run(program.clone(), Context(seed=options.seed))
            files = {DENSE: dense, "factors": _file(made, Path(scratch) / name)}
            shapes = [Shape(1, 1), Shape(1, 128)]
            timings = compare(files, DENSE, shapes, vocabulary=256, threads=options.threads)
            rows.put(
                name,
                rank=rank,
                bytes={key: _size(path) for key, path in files.items()},
                work={DENSE: multiply_adds(program, 1, 1), "factors": multiply_adds(made, 1, 1)},
                ms={f"{row.name} {row.tokens}": row.median_ms for row in timings},
                faster={
                    str(row.tokens): [row.ratio, row.ratio_low, row.ratio_high]
                    for row in timings
                    if row.name != DENSE
                },
                **halves(made, parts, options.limit),
            )
            print(name, rows.get(name), flush=True)


def _file(program: Program, folder: Path) -> Path:
    return export(program, folder, ["onnx"])["onnx"] / "model.onnx"


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob("model.onnx*"))


def show(rows: Rows) -> None:
    """What each rank does to one layer, what would be chosen, and what factors cost."""
    dense, tried = rows.get(DENSE), [row for row in rows.rows.values() if "layer" in row]
    table = _table("rank of one layer", "error", "best, held out", "median over layers", "better")
    for rank in sorted({row["rank"] for row in tried}):
        here = [row for row in tried if row["rank"] == rank]
        held = [row["held"] for row in here]
        error = statistics.median(row["error"] for row in here)
        better = sum(value < dense["held"] for value in held)
        values = [f"{error:.3f}", f"{min(held):.3f}", f"{statistics.median(held):.3f}"]
        table.add_row(str(rank), *values, f"{better} of {len(held)}")
    Console().print(table)
    best = min(tried, key=lambda row: row["chooses"])
    chosen = {
        layer: min((row for row in tried if row["layer"] == layer), key=lambda r: r["chooses"])
        for layer in {row["layer"] for row in tried}
    }
    median = statistics.median(row["held"] for row in chosen.values())
    Console().print(
        f"dense: {dense['chooses']:.3f} where it is chosen, {dense['held']:.3f} held out\n"
        f"chosen: layer {best['layer']} at rank {best['rank']}: {best['chooses']:.3f}, "
        f"{best['held']:.3f} held out\nmedian over layers, each at its best rank: {median:.3f} held out"
    )
    table = _table("all layers at", "held out", "MB", "of dense", "work", "speed at 1", "at 128")
    for name, row in rows.rows.items():
        if "ms" in row:
            size, work = row["bytes"], row["work"]
            faster = [row["faster"][tokens] for tokens in ("1", "128")]
            table.add_row(
                name.rpartition(" ")[2],
                f"{row['held']:.2f}",
                f"{size['factors'] / 1e6:.1f}",
                f"{size['factors'] / size[DENSE]:.2f}",
                f"{work['factors'] / work[DENSE]:.2f}",
                *(f"{middle:.2f} ({low:.2f}-{high:.2f})" for middle, low, high in faster),
            )
    Console().print(table)
    Console().print(machine_line(machine()))


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    return table


def numbers(text: str) -> list[int]:
    """Whole numbers between commas."""
    return [int(word) for word in text.split(",") if word]


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    rows = Rows(options.json or Path(tempfile.mkdtemp()) / "rows.json")
    model, tokenizer = load_model(options.model)
    program = trace(model, tokenizer=tokenizer)
    parts = split(load_data(str(options.data), tokenizer, options.length), 0.5)
    sweep(program, rows, parts, options)
    factored(program, rows, parts, options)
    show(rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--stack", choices=("ffn", "attention"), default="ffn")
    parser.add_argument("--ignore", type=lambda text: text.split(","), default=[])
    parser.add_argument("--form", choices=("tucker", "cp"), default="tucker")
    parser.add_argument("--ranks", type=numbers, default=[16, 32, 64, 128])
    parser.add_argument("--layers", type=numbers, default=[], help="some layers; all without")
    for name, value in (("limit", 32), ("length", 128), ("seed", 0), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
