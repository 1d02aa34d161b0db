"""What a training step costs with half of the heads and channels left out: seconds, memory, scoring.

A decoder with random weights on random tokens (neither changes the cost). All rows run in one process on
the same weights, a step of every row in turn, so that a machine that slows down slows them all; a ratio
is that of steps that stand side by side. The masked control multiplies by zero what the other leaves
out. Activation memory is what autograd keeps between forward and backward, weights and their copies
told apart; scoring is timed inside the steps. The vocabulary is small unless told, because products
with it are the same in every row.

    python benchmarks/omission_step.py [--hidden 1024] [--layers 8] [--tokens 2048] [--json FILE]
    python benchmarks/omission_step.py --device cuda --dtype bfloat16 --hidden 2048 --layers 16
"""

import argparse
import copy
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import sparsify.train.omitting as site
from sparsify import Program, parse, trace
from sparsify.disk.files import write_json
from sparsify.measure.machine import machine, machine_line
from sparsify.train.omitting import Omitting
from sparsify.train.program_model import ProgramModel

VOCABULARY = 4096
# Name -> options of insert-omission and the rate; the first is what all are compared with.
ROWS: dict[str, tuple[str, float]] = {
    "dense": ("metric=maxip", 0.0),
    "maxip, 0.5": ("metric=maxip", 0.5),
    "wanda, 0.5": ("metric=wanda", 0.5),
    "magnitude, 0.5": ("metric=magnitude", 0.5),
    "uniform sampling, 0.5": ("metric=uniform select=sampling", 0.5),
    "maxip, 0.25": ("metric=maxip", 0.25),
    "maxip, 0.75": ("metric=maxip", 0.75),
    "channels only, 0.5": ("metric=maxip of=channels", 0.5),
    "masked by zero, 0.5": ("metric=maxip form=zero", 0.5),
}


class Row:
    """One row: a graph over the weights of `program`, and the figures of its steps."""

    def __init__(
        self,
        name: str,
        program: Program,
        optimizer: torch.optim.Optimizer,
        options: argparse.Namespace,
    ) -> None:
        how, self.rate = ROWS[name]
        shared: dict[int, Any] = {id(value): value for _, value in program.tensors()}
        graph = replace(program, module=copy.deepcopy(program.module, shared), log=[])
        text = f"insert-omission{{{how} multiple={options.multiple}}}"
        self.program = parse(text).run(graph, compare=False)
        self.model = ProgramModel(self.program)
        self.omitting = Omitting(self.program)
        self.optimizer = optimizer
        self.seconds: list[float] = []
        self.scoring: list[float] = []
        self.number = 0

    def step(self, ids: Tensor, *, timed: bool) -> None:
        """One optimiser step on `ids [batch, length]`."""
        self.omitting.begin(self.number, self.rate)
        self.number += 1
        self.model.train()
        with self.omitting.training(), stopwatch(ids.device) as scoring:
            wait(ids.device)
            started = time.perf_counter()
            self.model(input_ids=ids, labels=ids).loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            wait(ids.device)
            seconds = time.perf_counter() - started
        if timed:
            self.seconds.append(seconds)
            self.scoring.append(scoring[0] / seconds)

    def memory(self, ids: Tensor) -> dict[str, int]:
        """Bytes: what the backward pass keeps, copies of weights in it, parameters, moments."""
        kept: dict[int, Tensor] = {}
        owned = {value.untyped_storage().data_ptr() for value in self.model.parameters()}

        def keep(value: Tensor) -> Tensor:
            if value.untyped_storage().data_ptr() not in owned:
                kept[value.untyped_storage().data_ptr()] = value
            return value

        self.omitting.begin(self.number, self.rate)
        self.model.train()
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value)
        with self.omitting.training(), hooks:
            loss = self.model(input_ids=ids, labels=ids).loss
        tokens = ids.numel()
        sizes = [(value, value.untyped_storage().nbytes()) for value in kept.values()]
        # A matrix without a dimension of tokens is a copy of rows or columns of a weight.
        copies = sum(n for v, n in sizes if v.dim() == 2 and tokens not in v.shape)
        moments = sum(
            value.nbytes
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )
        del loss
        return {
            "activations": sum(n for _, n in sizes) - copies,
            "copies": copies,
            "parameters": sum(value.nbytes for value in self.model.parameters()),
            "optimiser": moments,
        }


@contextmanager
def stopwatch(device: torch.device) -> Iterator[list[float]]:
    """Seconds spent on choosing neurons inside the block."""
    total, call = [0.0], site._Site.__call__

    def timed(self: Any, x: Tensor, *others: Any) -> Tensor:
        wait(device)
        started = time.perf_counter()
        kept = call(self, x, *others)
        wait(device)
        total[0] += time.perf_counter() - started
        return kept

    site._Site.__call__ = timed  # type: ignore[method-assign, assignment]
    try:
        yield total
    finally:
        site._Site.__call__ = call  # type: ignore[method-assign]


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def decoder(options: argparse.Namespace) -> Program:
    torch.manual_seed(0)
    heads = options.hidden // 64
    config = LlamaConfig(
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // options.group,
        vocab_size=options.vocabulary,
        max_position_embeddings=options.length,
    )
    model = LlamaForCausalLM(config).to(options.device, getattr(torch, options.dtype))
    return trace(model)


def bound(options: argparse.Namespace, rate: float, *, heads: bool) -> float:
    """The ratio of multiply-adds of the products with weights, attention and head counted in."""
    hidden, grouped = options.hidden, options.hidden // options.group
    stay = 1 - rate if heads else 1.0
    keys = stay if options.group == 1 else 1.0
    attention = options.length * hidden  # causal: half of two products

    def layer(queries: float, values: float, channels: float) -> float:
        own = 2 * hidden * hidden * queries + 2 * hidden * grouped * values
        return own + attention * queries + 3 * hidden * (hidden * 11 // 4) * channels

    head = hidden * options.vocabulary
    dense = options.layers * layer(1, 1, 1) + head
    return dense / (options.layers * layer(stay, keys, 1 - rate) + head)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--group", type=int, default=1, help="query heads of one KV group")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--multiple", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each row")
    parser.add_argument("--rows", help="names of the rows wanted, divided by ;")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = options.rows.split(";") if options.rows else list(ROWS)
    program = decoder(options)
    optimizer = torch.optim.AdamW(program.module.parameters(), lr=1e-5)
    rows = {name: Row(name, program, optimizer, options) for name in names}
    draw = torch.Generator().manual_seed(0)
    shape = (options.tokens // options.length, options.length)
    ids = torch.randint(0, options.vocabulary, shape, generator=draw).to(options.device)
    for number in range(options.rounds + 1):
        for row in rows.values():
            row.step(ids, timed=number > 0)
    found = {name: figures(row, rows["dense"], ids, options) for name, row in rows.items()}
    show(found, options)
    if options.json:
        kept = {key: str(value) for key, value in vars(options).items()}
        write_json(options.json, {"options": kept, "machine": machine(), "rows": found})


def figures(row: Row, dense: Row, ids: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """What is told of a row."""
    ratios = [a / b for a, b in zip(dense.seconds, row.seconds, strict=True)]
    how = str(row.program.log[-1])
    shrinks = row.rate if "form=zero" not in how else 0.0
    return {
        "seconds": row.seconds,
        "ratios": ratios,
        "scoring": row.scoring,
        "bound": bound(options, shrinks, heads="of=channels" not in how),
        **row.memory(ids),
    }


def show(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """The table."""
    console = Console(width=150)
    console.print(machine_line(machine()), f"{options.threads} threads, {options.device}")
    table = Table(
        title=f"hidden {options.hidden}, {options.layers} layers, vocabulary {options.vocabulary}, "
        f"{options.tokens} tokens a step in sequences of {options.length}, {options.dtype}",
        box=SIMPLE_HEAD,
    )
    heading = ("row", "s a step", "times dense (least, most)", "bound", "scoring")
    memory = ("activations", "copies", "parameters", "optimiser")
    for column in (*heading, *(f"{name}, MB" for name in memory)):
        table.add_column(column, justify="left" if column == "row" else "right", no_wrap=True)
    for name, row in found.items():
        ratios = row["ratios"]
        table.add_row(
            name,
            f"{statistics.median(row['seconds']):.2f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})",
            f"{row['bound']:.2f}",
            f"{statistics.median(row['scoring']):.2%}",
            *(f"{row[part] / 1e6:.0f}" for part in memory),
        )
    console.print(table)


if __name__ == "__main__":
    main()
