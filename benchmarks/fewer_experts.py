"""UNCURL on a mixture that is really trained: fewer experts by merging, by pruning, and from the start.

A small decoder with E experts in every layer, two for each token, learns a text; then a half, three quarters,
or seven eighths of its experts go: merged (router shared, or sliced), pruned by how often they are chosen, by
their row of the router, by size. Beside them stand mixtures that had so few experts from the start and the
same training, and every row again after a little more training. Perplexity of another text, bytes, and
at the end all files on ONNX Runtime, in turns in one process, at 1 and 128 tokens.

    python benchmarks/fewer_experts.py --train FILE --test FILE [--experts 16] [--steps 600] [--more 60]
        [--limit 60] [--threads 1] [--json FILE]
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from resumable import Rows
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import Context, Program, export, load, load_data, load_model, parse, save, trace
from sparsify.data.sequences import Data
from sparsify.measure.inputs import Shape
from sparsify.measure.latency import compare
from sparsify.measure.machine import machine, machine_line
from sparsify.measure.quality import perplexity

FILE = "onnx/model.onnx"
SEEN = "insert-probes{of=routers} | calibrate{samples=64}"
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def ways(sparsity: float) -> dict[str, str]:
    """How a share of the experts goes."""
    pruned = f"choose-masks{{of=experts score=%s sparsity={sparsity}}}"
    masks = "insert-masks{of=experts}"
    return {
        "merged, router shared": f"{SEEN} | choose-clusters{{sparsity={sparsity}}} | remove-probes | "
        "merge-experts",
        "merged, router sliced": f"{masks} | {SEEN} | choose-clusters{{sparsity={sparsity} gates=sliced}} "
        "| remove-probes | prune-experts",
        "pruned by frequency": f"{masks} | {SEEN} | {pruned % 'frequency'} | remove-probes | prune-experts",
        "pruned by router": f"{masks} | {pruned % 'router'} | prune-experts",
        "pruned by size": f"{masks} | {pruned % 'magnitude'} | prune-experts",
    }


def fresh(experts: int, options: argparse.Namespace) -> Program:
    """An untrained mixture, with the tokenizer of the embedded model."""
    _, tokenizer = load_model("embedded")
    torch.manual_seed(options.seed)
    config = transformers.MixtralConfig(
        vocab_size=len(tokenizer), num_local_experts=experts, **SHAPE
    )
    return trace(transformers.MixtralForCausalLM(config).eval(), tokenizer=tokenizer)


def learnt(program: Program, data: Data, steps: int, lr: float, seed: int) -> Program:
    how = f"steps={steps} batch=16 lr={lr} warmup=0.05 balance=0.01"
    return parse(f"train{{{how}}}").run(program, Context(data=data, seed=seed))


def trained(experts: int, data: Data, options: argparse.Namespace) -> Program:
    """A mixture of so many experts that has learnt the text; kept on disk."""
    place = options.keep / f"mixture-{experts}" if options.keep else None
    if place is not None and place.is_dir():
        return load(place)
    program = learnt(fresh(experts, options), data, options.steps, 0.001, options.seed)
    if place is not None:
        save(program, place)
    return program


def written(program: Program, folder: Path) -> Path:
    """The ONNX file of a row, made once."""
    if not folder.is_dir():
        export(program, folder, ["onnx"])
    return folder / FILE


def quality(program: Program, test: Data, options: argparse.Namespace) -> float:
    """Perplexity on the first batches of the test text."""
    return perplexity(lambda batch: program.run(batch)[0], test, 8, options.limit).value


def timed(files: dict[str, Path], rows: Rows, options: argparse.Namespace) -> None:
    """Milliseconds of every file, and how many times as fast as the first one."""
    shapes = [Shape(1, 1), Shape(1, 128)]
    first = next(iter(files))
    timings = compare(
        files, first, shapes, vocabulary=SHAPE["hidden_size"], threads=options.threads
    )
    for name in files:
        mine = {str(row.tokens): row for row in timings if row.name == name}
        rows.put(
            name,
            ms={tokens: row.median_ms for tokens, row in mine.items()},
            ratio={
                tokens: [row.ratio, row.ratio_low, row.ratio_high] for tokens, row in mine.items()
            },
        )


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    rows = Rows(options.json or Path(tempfile.mkdtemp()) / "rows.json")
    _, tokenizer = load_model("embedded")
    train, test = (load_data(str(p), tokenizer, 128) for p in (options.train, options.test))

    place = options.keep or Path(tempfile.mkdtemp())
    files: dict[str, Path] = {}

    def put(name: str, make: Callable[[], Program]) -> None:
        folder = place / "files" / name.replace(" ", "-")
        if "after" in rows.get(name) and folder.is_dir():
            files[name] = folder / FILE
            return
        program = make()
        files[name] = written(program, folder)
        size = sum(file.stat().st_size for file in files[name].parent.glob("model.onnx*"))
        rows.put(name, bytes=size)
        if "after" in rows.get(name):
            return
        rows.put(name, perplexity=quality(program, test, options))
        again = learnt(program, train, options.more, 0.0003, options.seed + 1)
        rows.put(name, after=quality(again, test, options))
        print(name, rows.get(name), flush=True)

    whole = trained(options.experts, train, options)
    put(f"{options.experts} experts", whole.clone)
    for factor in (2, 4, 8):
        left = options.experts // factor
        for name, text in ways(1 - 1 / factor).items():
            context = Context(data=train, seed=options.seed)
            put(f"{left} experts, {name}", lambda: parse(text).run(whole.clone(), context))  # noqa: B023
        put(f"{left} experts from the start", lambda: trained(left, train, options))  # noqa: B023
    timed(files, rows, options)
    show(rows)


def show(rows: Rows) -> None:
    table = Table(box=SIMPLE_HEAD)
    for column in ("", "perplexity", "trained on", "MB", "1 token, times as fast", "128 tokens"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in rows.rows.items():
        spreads = [row["ratio"][tokens] for tokens in ("1", "128")]
        ms = [f"{ratio:.2f} ({low:.2f}-{high:.2f})" for ratio, low, high in spreads]
        values = [f"{row[key]:.2f}" for key in ("perplexity", "after")]
        table.add_row(name, *values, f"{row['bytes'] / 1e6:.1f}", *ms)
    Console().print(table)
    Console().print(machine_line(machine()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--keep", type=Path, help="where trained mixtures are kept")
    for name, value in (("experts", 16), ("steps", 600), ("more", 60), ("limit", 60), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
