"""What a step of adaptive training costs against one of dense training: seconds, memory, work on masks.

A decoder with random weights on random tokens (neither changes the cost). Each row is a process of its
own, so that its peak memory is its own; rows take turns, a few steps at a time, so that a machine that
slows down slows them all. Mask work is timed alone: one choice of every mask over the steps between two
choices, and what the optimiser's rules add to AdamW.

    python benchmarks/adaptive_cost.py [--hidden 512] [--layers 8] [--tokens 2048] [--threads 2] [--json FILE]
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from sparsify import Context, parse, trace
from sparsify.data.sequences import TextData
from sparsify.disk.files import write_json
from sparsify.ir.program import Program
from sparsify.measure.machine import machine, machine_line
from sparsify.tensors.pattern import Pattern
from sparsify.train.moving_masks import AdaptiveMasks, Refresh
from sparsify.train.optimizer import SparseAdamW
from sparsify.train.options import AdamS, ArsSte

LENGTH, VOCABULARY = 256, 4096
MASKS = "insert-masks | choose-masks{pattern=2:4}"
TEACHER = "distill=kl{temperature=2.0}"
ROWS = {
    "dense": ("", ""),
    "dense, teacher": ("", TEACHER),
    "fixed mask": (MASKS, ""),
    "AST without distillation": (MASKS, "masks=every{steps=10} decay=ars-ste"),
    "AST": (MASKS, f"{TEACHER} masks=every{{steps=10}} decay=ars-ste"),
    "CAST": (
        "insert-masks | insert-scales",
        f"{TEACHER} masks=every{{steps=10}} decay=adams{{reach=0.0}}",
    ),
}


def model(hidden: int, layers: int) -> Program:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=VOCABULARY,
    )
    return trace(LlamaForCausalLM(config))


def row(pipe: Connection, choice: str, how: str, options: argparse.Namespace) -> None:
    """A process: a few steps whenever it is asked to, answered by seconds a step and the peak so far."""
    torch.set_num_threads(options.threads)
    program = model(options.hidden, options.layers)
    if choice:
        program = parse(choice).run(program)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    draw = torch.Generator().manual_seed(0)
    data = TextData(torch.randint(0, VOCABULARY, (LENGTH * 256,), generator=draw), LENGTH)
    text = f"train{{steps={options.steps + 1} batch={options.tokens // LENGTH} {how}}}"
    while pipe.recv():
        context = Context(data=data)
        parse(text).run(program, context)
        # The first step of a run allocates; it is not timed.
        seconds = [options.tokens / f["tokens_per_s"] for f in context.figures["train"][1:]]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pipe.send((statistics.median(seconds), before * 1024, peak * 1024))


def mask_work(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of one choice of all masks, and of one optimiser step with and without a rule."""
    torch.set_num_threads(options.threads)
    program = parse(MASKS).run(model(options.hidden, options.layers))
    masks = AdaptiveMasks(program, Refresh(10, Pattern(2, 4)), dense_forward=False)
    parameters = list(program.module.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    plain = torch.optim.AdamW(parameters, lr=1e-6)
    found = {"choice": timed(masks.refresh), "AdamW": timed(plain.step)}
    for name, rule in (("AST's step", ArsSte()), ("CAST's step", AdamS())):
        optimizer = SparseAdamW(parameters, rule, lr=1e-6)
        optimizer.masks, optimizer.progress = masks.of_parameters(), 0.5
        found[name] = timed(optimizer.step)
    return found


def timed(call: Callable[[], Any]) -> float:
    """Median seconds of a call, after one that is not counted."""
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes, workers = {}, []
    for name, (choice, how) in ROWS.items():
        pipes[name], theirs = context.Pipe()
        workers.append(context.Process(target=row, args=(theirs, choice, how, options)))
        workers[-1].start()
    times: dict[str, list[float]] = {name: [] for name in ROWS}
    memory: dict[str, tuple[int, int]] = {}
    for _ in range(options.rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            seconds, before, peak = pipe.recv()
            times[name].append(seconds)
            memory[name] = (before, peak)
    for pipe in pipes.values():
        pipe.send(False)
    for worker in workers:
        worker.join()
    show(times, memory, mask_work(options), options)


def show(
    times: dict[str, list[float]],
    memory: dict[str, tuple[int, int]],
    work: dict[str, float],
    options: argparse.Namespace,
) -> None:
    """The tables, and the same as JSON."""
    console = Console(width=120)
    console.print(machine_line(machine()), f"{options.threads} threads")
    table = Table(title=f"{options.tokens} tokens a step", box=SIMPLE_HEAD)
    for column in (
        "row",
        "seconds a step",
        "times dense",
        "peak memory, GB",
        "above the model, GB",
    ):
        table.add_column(column, justify="left" if column == "row" else "right", no_wrap=True)
    rows = []
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times["dense"], strict=True)]
        before, peak = memory[name]
        rows.append({"row": name, "seconds": seconds, "ratios": ratios, "peak": peak})
        table.add_row(
            name,
            f"{statistics.median(seconds):.3f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            f"{peak / 1e9:.2f}",
            f"{(peak - before) / 1e9:.2f}",
        )
    console.print(table)
    step = statistics.median(times["AST"])
    for rule in ("AST's step", "CAST's step"):
        share = (work["choice"] / 10 + work[rule] - work["AdamW"]) / step
        console.print(f"mask work with {rule}, choice every 10 steps: {share:.1%} of a step of AST")
    console.print(json.dumps({name: round(value, 4) for name, value in work.items()}))
    if options.json:
        write_json(options.json, {"machine": machine(), "rows": rows, "mask work": work})


if __name__ == "__main__":
    main()
