"""A model made smaller to some shapes: sheared (masks learnt to the shape), or removed at once.

Every row sees the same number of tokens, but for `taylor, less`: sheared ones a part of them while masks are
learnt and the rest afterwards, the others all of them afterwards, with whole weights or with low-rank
branches; `taylor, less` only the rest, which tells what the tokens of the masks would have been worth to it.
Removed at once, the layers by block influence: heads and channels by Taylor scores and the width by
first-order ones, or heads and channels by fluctuation (FLAP) and the width by its activations. Perplexity of
text that no row has trained on, after removal and after recovery; latency on ONNX Runtime against the dense
model, the two taking turns in one process.

    python benchmarks/sheared.py --json FILE [--data FILE] [--test FILE] [--model embedded]
        [--shapes 4/4/352/192,3/2/176/128] [--masks 400] [--more 400] [--rate 0.5] [--ramp 0.4] [--lr 0.001]
        [--precision float32] [--batch 16] [--seeds 3] [--limit 100] [--threads 1] [--rounds 30]

Trains on the first four fifths of the held-out text and tests on the rest, unless files are given. A run that
was stopped goes on where it ended.
"""

import argparse
import statistics
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from resumable import Row, Rows
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import Context, Program, export, load_data, load_model, parse, trace
from sparsify.data.sequences import Data, split
from sparsify.measure.inputs import Shape
from sparsify.measure.latency import compare
from sparsify.measure.machine import machine, machine_line
from sparsify.measure.quality import perplexity

KINDS = ("layers", "heads", "channels", "hidden")
INSERT = "insert-masks{of=layers,heads,channels,hidden}"
PRUNE = "prune-heads | prune-channels | prune-layers | prune-hidden"
SEEN = "insert-probes | calibrate{samples=128}"


def ways(sizes: dict[str, int], options: argparse.Namespace) -> dict[str, tuple[str, str]]:
    """Removal, and what makes good for it, by the name of the row."""
    whole = f"batch={options.batch} floor=0.1 precision={options.precision}"
    steps = options.masks + options.more
    target = " ".join(f"{kind}={size}" for kind, size in sizes.items())
    target += f" lr={options.rate} ramp={options.ramp}"
    layers = f"choose-masks{{of=layers score=influence to=shape{{layers={sizes['layers']}}}}}"
    inner = f"to=shape{{heads={sizes['heads']} channels={sizes['channels']}}}"
    width = f"to=shape{{hidden={sizes['hidden']}}}"
    taylor = (
        f"{INSERT} | {layers} | choose-masks{{of=heads,channels score=taylor {inner}}} | "
        f"choose-masks{{of=hidden score=first-order {width}}} | {PRUNE}"
    )
    flap = (
        f"{SEEN} | {INSERT} | {layers} | choose-masks{{of=heads,channels score=fluctuation {inner}}} | "
        f"choose-masks{{of=hidden score=activation {width}}} | remove-probes | {PRUNE}"
    )
    learnt = (
        f"train{{steps={options.masks} lr={options.lr / 2} warmup=0.1 {whole} "
        f"masks=learned{{{target}}}}}"
    )
    branches = (
        f"insert-lora{{rank=16 alpha=16.0}} | "
        f"train{{steps={steps} lr={3 * options.lr} update=lora {whole}}} | fold-lora"
    )
    rest, all_of_it = (
        f"train{{steps={count} lr={options.lr} {whole}}}" for count in (options.more, steps)
    )
    return {
        "sheared": (f"{INSERT} | {learnt} | {PRUNE}", rest),
        "taylor, all weights": (taylor, all_of_it),
        "taylor, less": (taylor, rest),
        "taylor, branches": (taylor, branches),
        "flap, all weights": (flap, all_of_it),
    }


def quality(program: Program, test: Data, options: argparse.Namespace) -> float:
    return perplexity(lambda batch: program.run(batch)[0], test, 8, options.limit).value


def fill(
    rows: Rows,
    shape: str,
    name: str,
    dense: Program,
    way: tuple[str, str],
    context: Context,
    test: Data,
    options: argparse.Namespace,
) -> None:
    """Make a row whole, if it is not, and the row of its shape: all programs of a shape are timed once."""
    if "after" in rows.get(name):
        return
    removal, recovery = way
    program = parse(removal).run(dense.clone(), context)
    count = sum(value.numel() for value in program.module.parameters())
    rows.put(name, parameters=count, pruned=quality(program, test, options))
    program = parse(recovery).run(program, context)
    if "speed" not in rows.get(shape):
        time_of(rows, shape, dense, program, options)
    rows.put(name, after=quality(program, test, options))
    print(name, rows.get(name), flush=True)


def time_of(
    rows: Rows, name: str, dense: Program, program: Program, options: argparse.Namespace
) -> None:
    """Latency of the shape against the dense model, which takes turns with it."""
    with tempfile.TemporaryDirectory() as scratch:
        files = {
            label: export(item, Path(scratch) / label, ["onnx"])["onnx"] / "model.onnx"
            for label, item in (("dense", dense), ("it", program))
        }
        found = compare(
            files,
            "dense",
            [Shape(1, 1), Shape(1, 128)],
            vocabulary=dense.source.config["vocab_size"],
            threads=options.threads,
            rounds=options.rounds,
        )
    speed = {
        str(row.tokens): [row.median_ms, row.ratio, row.ratio_low, row.ratio_high]
        for row in found
        if row.name == "it"
    }
    rows.put(name, speed=speed)


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    rows = Rows(options.json)
    model, tokenizer = load_model(options.model)
    dense = trace(model, tokenizer=tokenizer)
    train, test = texts(tokenizer, options)
    if "after" not in rows.get("dense"):
        count = sum(value.numel() for value in dense.module.parameters())
        value = quality(dense, test, options)
        rows.put("dense", parameters=count, pruned=value, after=value)
    for shape in options.shapes.split(","):
        sizes = dict(zip(KINDS, map(int, shape.split("/")), strict=True))
        for way, text in ways(sizes, options).items():
            for seed in range(options.seeds):
                context = Context(data=train, seed=seed)
                name = f"{shape} {way} {seed}"
                fill(rows, shape, name, dense, text, context, test, options)
    show(rows, options)


def texts(tokenizer: Any, options: argparse.Namespace) -> tuple[Data, Data]:
    """What is trained on and what is tested on."""
    held_out = str(resources.files("sparsify") / "embedded" / "heldout.txt")
    first, rest = split(load_data(held_out, tokenizer, 128), 0.8)
    given = [load_data(str(p), tokenizer, 128) if p else None for p in (options.data, options.test)]
    return given[0] or first, given[1] or rest


def show(rows: Rows, options: argparse.Namespace) -> None:
    table = Table(box=SIMPLE_HEAD)
    columns = ("layers/heads/channels/hidden", "", "parameters", "removed", "recovered")
    for column in (*columns, "speed at 1", "at 128"):
        table.add_column(column, no_wrap=True)
    one = rows.get("dense")
    table.add_row("dense", "", f"{one['parameters']:,}", f"{one['after']:.2f}", "", "1.00", "1.00")
    for shape in options.shapes.split(","):
        speed = rows.get(shape).get("speed", {})
        ratios = [
            "{1:.2f} ({2:.2f}-{3:.2f})".format(*speed[key]) if speed else "" for key in ("1", "128")
        ]
        for way in ways(dict.fromkeys(KINDS, 1), options):
            found = [rows.get(f"{shape} {way} {seed}") for seed in range(options.seeds)]
            found = [row for row in found if "after" in row]
            if not found:
                continue
            figures = [_spread(found, key) for key in ("pruned", "after")]
            table.add_row(shape, way, f"{found[0]['parameters']:,}", *figures, *ratios)
    Console(width=140).print(table)
    Console().print(machine_line(machine()))


def _spread(found: list[Row], key: str) -> str:
    values = [row[key] for row in found]
    return f"{statistics.mean(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="text to train on")
    parser.add_argument("--test", type=Path, help="text to test on")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--precision", default="float32", help="or bf16")
    parser.add_argument("--lr", type=float, default=0.001, help="peak learning rate of weights")
    parser.add_argument("--shapes", default="4/4/352/192,3/2/176/128")
    numbers = {"masks": 400, "more": 400, "batch": 16, "seeds": 3, "limit": 100}
    for name, value in {**numbers, "threads": 1, "rounds": 30}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rate", type=float, default=0.5, help="peak learning rate of masks")
    parser.add_argument(
        "--ramp", type=float, default=0.4, help="part of the steps that targets rise"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
