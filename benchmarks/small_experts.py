"""PESC on dialogues: small experts behind every feed-forward block against low-rank branches alone.

Rows of equal steps on the same dialogues, three seeds each: branches on every linear; the same and experts,
whose balance is told over time; a wider branch of as many parameters as the experts have. Perplexity of the
answers of the last fifth. Before the first step the program with experts is compared with the dense one,
bit for bit; afterwards it is exported and read back.

    python benchmarks/small_experts.py --dialogues FILE.jsonl [--model embedded] [--steps 200] [--seeds 3]
        [--experts 8] [--top 2] [--rank 16] [--lr 0.002] [--limit 60] [--threads 1] [--json FILE]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import Context, Program, export, load_data, load_model, parse, trace
from sparsify.data.sequences import Data, split
from sparsify.disk.files import write_json
from sparsify.ir.views.targets import targeted
from sparsify.measure.machine import machine, machine_line
from sparsify.measure.quality import perplexity

_LORA = 8  # the rank of branches on every linear


def parameters(program: Program) -> int:
    return sum(value.numel() for value in program.module.parameters())


def quality(program: Program, data: Data, limit: int) -> float:
    return perplexity(lambda batch: program.run(batch)[0], data, 8, limit).value


def added_rank(program: Program, options: argparse.Namespace) -> int:
    """The rank at which branches hold as many parameters as branches of `_LORA` and the experts."""
    plain = parameters(program)
    experts = parse(experts_text(options)).run(program.clone(), Context())
    views = targeted(program, ("*",), ())
    sides = sum(sum(program.tensor(view.weight).shape) for view in views)
    return _LORA + round((parameters(experts) - plain) / sides)


def experts_text(options: argparse.Namespace) -> str:
    return f"insert-experts{{experts={options.experts} top={options.top} rank={options.rank}}}"


def rows(program: Program, options: argparse.Namespace) -> dict[str, str]:
    """The pipeline of each row."""
    how = f"steps={options.steps} batch=8 lr={options.lr} schedule=constant warmup=0.03"
    lora = f"insert-lora{{rank={_LORA}}}"
    wide = f"insert-lora{{rank={added_rank(program, options)}}}"
    alone = f"train{{{how} update=lora}} | fold-lora"
    mixed = f"train{{{how} update=experts balance=0.01}} | fold-lora"
    return {
        "dense": "",
        f"branches of rank {_LORA}": f"{lora} | {alone}",
        "branches of as many parameters": f"{wide} | {alone}",
        "branches and experts": f"{lora} | {experts_text(options)} | {mixed}",
        "branches and experts, unbalanced": f"{lora} | {experts_text(options)} | "
        + mixed.replace("balance=0.01", "balance=0.0"),
    }


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    model, tokenizer = load_model(options.model)
    base = trace(model, tokenizer=tokenizer)
    data = load_data(options.dialogues, tokenizer, options.length, kind="chat")
    first, last = split(data, 0.8)
    started = parse(experts_text(options)).run(base.clone(), Context())
    assert torch.equal(started.run()[0], base.run()[0]), "experts moved the dense model"
    print("before the first step: bitwise the dense model")
    found: dict[str, dict[str, Any]] = {}
    for name, text in rows(base, options).items():
        values, figures, seconds, grown = [], [], [], 0
        for seed in range(options.seeds if text else 1):
            context, start = Context(data=first, seed=seed), time.perf_counter()
            program = base.clone()
            if text:
                program = parse(text).run(program, context)
            seconds.append(time.perf_counter() - start)
            values.append(quality(program, last, options.limit))
            figures.append(context.figures.get("train", []))
            grown = parameters(program) - parameters(base)
        found[name] = {"perplexity": values, "seconds": seconds, "stays": grown}
        balance = [row["balance"] for row in figures[0] if "balance" in row]
        if balance:
            found[name]["balance"] = balance
            steps = [0, len(balance) // 8, len(balance) // 2, len(balance) - 1]
            print("balance at steps", {step + 1: round(balance[step], 3) for step in steps})
            with tempfile.TemporaryDirectory() as scratch:
                export(program, Path(scratch), ["onnx", "onnx-decode"])
            print("exported to onnx and onnx-decode, read back and compared")
    show(found)
    Console().print(machine_line(machine()))
    if options.json is not None:
        write_json(options.json, {"rows": found, "machine": machine()})


def show(found: dict[str, dict[str, Any]]) -> None:
    table = Table(box=SIMPLE_HEAD)
    for column in ("", "perplexity", "spread", "parameters that stay", "seconds"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in found.items():
        values = row["perplexity"]
        spread = f"{min(values):.2f}-{max(values):.2f}" if len(values) > 1 else ""
        mean, seconds = statistics.mean(values), statistics.mean(row["seconds"])
        table.add_row(name, f"{mean:.2f}", spread, f"{row['stays']:,}", f"{seconds:.0f}")
    Console().print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dialogues", required=True)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--limit", type=int, default=60)
    for name, value in (("steps", 200), ("seeds", 3), ("experts", 8), ("top", 2), ("rank", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
