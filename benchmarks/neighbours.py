"""A larger model writes a store, a small one asks it: plain kNN mixing behind the head of the small one.

The larger is the embedded model; the small one, of the same tokenizer, learns from it for some steps on the
first part of a text. Rows: the small one alone, with a store of the text's own next tokens, of what the
larger says would follow in that text, of text that the larger has written, and that last store with its
values shuffled (the control). Perplexity of the last fifth of the text, the share that was chosen on rows
apart, what the store takes, and milliseconds on ONNX Runtime at 1 and 128 tokens.

    python benchmarks/neighbours.py [--text FILE] [--steps 400] [--size 16384] [--k 16] [--written 200]
        [--limit 60] [--seed 0] [--threads 1] [--json FILE]
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import sparsify
from sparsify import Context, Program, export, load_data, load_model, parse, trace
from sparsify.data.sequences import Data, TensorData, split
from sparsify.disk.files import write_json
from sparsify.ir.features.neighbours import neighbours, store_bytes
from sparsify.measure.inputs import Shape
from sparsify.measure.latency import compare
from sparsify.measure.machine import machine, machine_line
from sparsify.measure.quality import perplexity

LENGTH = 128
HELD_OUT = Path(sparsify.__file__).parent / "embedded" / "heldout.txt"


def small(tokenizer: Any, seed: int) -> Program:
    """An untrained decoder of a twentieth of the larger model's layers and width, with its tokenizer."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return trace(transformers.LlamaForCausalLM(config).eval(), tokenizer=tokenizer)


def written(model: transformers.PreTrainedModel, first: Data, count: int, seed: int) -> TensorData:
    """Sequences that the larger model writes, each after four tokens of the text."""
    torch.manual_seed(seed)
    heads = first.batch([i % len(first) for i in range(count)])["input_ids"][:, :4]
    how = transformers.GenerationConfig(
        do_sample=True,
        top_p=0.95,
        max_new_tokens=LENGTH - 4,
        min_new_tokens=LENGTH - 4,
        pad_token_id=0,
    )
    mask = torch.ones_like(heads)
    with torch.no_grad():
        ids = model.generate(heads, attention_mask=mask, generation_config=how)
    return TensorData({"input_ids": ids, "labels": ids.clone()})


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    model, tokenizer = load_model("embedded")
    larger = trace(model, tokenizer=tokenizer)
    first, last = split(load_data(str(options.text), tokenizer, LENGTH), 0.8)
    learn = f"train{{steps={options.steps} batch=8 lr=0.003 warmup=0.1 task=0.5 distill=kl}}"
    context = Context(data=first, dense=larger, seed=options.seed)
    student = parse(learn).run(small(tokenizer, options.seed), context)
    print(f"the small one has learnt for {options.steps} steps", flush=True)
    store = f"insert-neighbours{{size={options.size} k={options.k}}} | choose-neighbours"
    ways: dict[str, tuple[str, Data]] = {
        "next tokens of the text": (store, first),
        "what the larger says of the text": (f"{store}{{by=dense}}", first),
        "text that the larger wrote": (store, written(model, first, options.written, options.seed)),
    }
    programs = {"the larger": larger, "the small one": student}
    for name, (text, data) in ways.items():
        where = Context(data=data, dense=larger, seed=options.seed)
        programs[name] = parse(text).run(student.clone(), where)
        print(f"{name}: filled", flush=True)
    programs["the same, shuffled"] = shuffled(programs[name].clone(), options.seed)
    rows = {name: figures(program, last, options) for name, program in programs.items()}
    times(programs, rows, options)
    show(rows)
    if options.json is not None:
        write_json(options.json, {"rows": rows, "machine": machine()})


def shuffled(program: Program, seed: int) -> Program:
    """The control: every key answers with the value of another."""
    (found,) = neighbours(program)
    values = program.tensor(found.values)
    turn = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    values.copy_(values[turn].clone())
    return program


def figures(program: Program, test: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Perplexity, parameters, and of a store its share, temperature and bytes."""
    row: dict[str, Any] = {
        "perplexity": perplexity(lambda b: program.run(b)[0], test, 8, options.limit).value,
        "parameters": sum(value.numel() for value in program.module.parameters()),
    }
    for found in neighbours(program):
        row |= {
            "share": float(program.tensor(found.share)),
            "temperature": float(program.tensor(found.temperature)),
            "bytes": store_bytes(program, found),
        }
    return row


def times(programs: dict[str, Program], rows: dict[str, Any], options: argparse.Namespace) -> None:
    """Milliseconds of the models in turns; all stores are of one size."""
    with tempfile.TemporaryDirectory() as scratch:
        timed = ["the larger", "the small one", "text that the larger wrote"]
        paths = {
            name: export(programs[name], Path(scratch) / str(i), ["onnx"])["onnx"] / "model.onnx"
            for i, name in enumerate(timed)
        }
        shapes = [Shape(1, 1), Shape(1, LENGTH)]
        measured = compare(paths, "the small one", shapes, vocabulary=4096, threads=options.threads)
    for timing in measured:
        rows[timing.name][f"ms, {timing.tokens}"] = timing.median_ms


def show(rows: dict[str, Any]) -> None:
    table = Table(box=SIMPLE_HEAD)
    columns = (
        "",
        "perplexity",
        "parameters",
        "share",
        "temperature",
        "store, MB",
        "ms, 1",
        "ms, 128",
    )
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        numbers = [(row.get(key), form) for key, form in (
            ("perplexity", ".2f"), ("parameters", ","), ("share", ".3f"), ("temperature", ".3g"),
        )]  # fmt: skip
        size = row["bytes"] / 1e6 if "bytes" in row else None
        numbers += [(size, ".1f"), (row.get("ms, 1"), ".2f"), (row.get(f"ms, {LENGTH}"), ".2f")]
        table.add_row(name, *("" if v is None else format(v, form) for v, form in numbers))
    console = Console(width=120)
    console.print(table)
    console.print(machine_line(machine()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, default=HELD_OUT)
    numbers = (
        ("steps", 400),
        ("size", 16384),
        ("k", 16),
        ("written", 200),
        ("limit", 60),
        ("seed", 0),
    )
    for name, value in numbers:
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
