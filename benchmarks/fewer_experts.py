"""UNCURL on a mixture that is really trained: fewer experts by merging, by pruning, and from the start.

A small decoder with E experts in every layer, two for each token, learns a text; then a half, three quarters,
or seven eighths of its experts go: merged (router shared, or sliced), pruned by how often they are chosen, by
their row of the router, by size. Beside them stand mixtures that had so few experts from the start and the
same training, and every row again after a little more training. Perplexity of another text, bytes, and
milliseconds on ONNX Runtime at 1 and 128 tokens.

    python benchmarks/fewer_experts.py --train FILE --test FILE [--experts 16] [--steps 600] [--more 60]
        [--limit 60] [--threads 1] [--json FILE]
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

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


def figures(program: Program, test: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Perplexity, and bytes and milliseconds of the ONNX file."""
    quality = perplexity(lambda batch: program.run(batch)[0], test, 8, options.limit).value
    with tempfile.TemporaryDirectory() as scratch:
        path = export(program, Path(scratch), ["onnx"])["onnx"] / "model.onnx"
        shapes = [Shape(1, 1), Shape(1, 128)]
        timings = compare(
            {"it": path}, "it", shapes, vocabulary=SHAPE["hidden_size"], threads=options.threads
        )
        size = sum(file.stat().st_size for file in path.parent.glob("model.onnx*"))
    times = {str(row.tokens): row.median_ms for row in timings}
    return {"perplexity": quality, "bytes": size, "ms": times}


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    rows = Rows(options.json or Path(tempfile.mkdtemp()) / "rows.json")
    _, tokenizer = load_model("embedded")
    train, test = (load_data(str(p), tokenizer, 128) for p in (options.train, options.test))

    def put(name: str, program: Program) -> None:
        if "after" in rows.get(name):
            return
        rows.put(name, **figures(program, test, options))
        again = learnt(program, train, options.more, 0.0003, options.seed + 1)
        more = perplexity(lambda batch: again.run(batch)[0], test, 8, options.limit)
        rows.put(name, after=more.value)
        print(name, rows.get(name), flush=True)

    whole = trained(options.experts, train, options)
    put(f"{options.experts} experts", whole.clone())
    for factor in (2, 4, 8):
        left = options.experts // factor
        for name, text in ways(1 - 1 / factor).items():
            label = f"{left} experts, {name}"
            if "after" not in rows.get(label):
                put(label, parse(text).run(whole.clone(), Context(data=train, seed=options.seed)))
        put(f"{left} experts from the start", trained(left, train, options))
    show(rows)


def show(rows: Rows) -> None:
    table = Table(box=SIMPLE_HEAD)
    for column in ("", "perplexity", "trained on", "MB", "ms, 1 token", "ms, 128"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in rows.rows.items():
        ms = [f"{row['ms'][tokens]:.2f}" for tokens in ("1", "128")]
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
