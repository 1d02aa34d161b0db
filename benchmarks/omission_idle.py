"""How idle neurons are: perplexity of a trained model when some take no part, before any step of training.

Omission (SAT) costs nothing only where many neurons hardly matter to a batch. For every way of choosing
and every rate: perplexity of the sub-network, neurons chosen anew for each batch. Rates are rounded to whole
heads in each KV group. Taken in training mode, where omission works; a model with dropout is refused.

    python benchmarks/omission_idle.py [--model embedded|FOLDER] [--text FILE] [--json FILE]
"""

import argparse
from importlib import resources
from itertools import count
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sparsify import Program, load_data, load_model, parse, trace
from sparsify.data.sequences import Data
from sparsify.disk.files import write_json
from sparsify.measure.machine import machine, machine_line
from sparsify.measure.quality import perplexity
from sparsify.train.omitting import Omitting
from sparsify.train.program_model import ProgramModel

WAYS = {
    "maxip, topk": "metric=maxip select=topk",
    "wanda, topk": "metric=wanda select=topk",
    "magnitude, topk": "metric=magnitude select=topk",
    "maxip, sampling": "metric=maxip select=sampling",
    "uniform, sampling": "metric=uniform select=sampling",
    "wanda, topk, heads alone": "of=heads metric=wanda select=topk",
    "wanda, topk, whole KV groups alone": "of=heads rule=groups metric=wanda select=topk",
    "wanda, topk, channels alone": "of=channels metric=wanda select=topk",
}


def perplexities(
    program: Program, data: Data, rates: list[float], limit: int, batch: int
) -> list[float]:
    """Perplexities of a program that omits, by rate."""
    omitting = Omitting(program, seed=0)
    model = ProgramModel(program).train()
    if not torch.equal(model(**program.sample).logits, model(**program.sample).logits):
        raise SystemExit("the model has dropout; set it to 0 in its config")

    def at(rate: float) -> float:
        steps = count()

        def forward(inputs: dict[str, Tensor]) -> Tensor:
            omitting.begin(next(steps), rate)
            logits: Tensor = model(**inputs).logits
            return logits

        return perplexity(forward, data, batch, limit).value

    with omitting.training():
        return [at(rate) for rate in rates]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded", help="embedded, or a folder")
    parser.add_argument("--text", help="a text it knows; else the embedded model's held-out text")
    parser.add_argument("--rates", default="0,0.125,0.25,0.375,0.5,0.65")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--limit", type=int, default=160, help="sequences to measure on")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rates = [float(word) for word in options.rates.split(",")]
    text = options.text or str(resources.files("sparsify") / "embedded" / "heldout.txt")
    console = Console(width=120)
    console.print(machine_line(machine()))
    title = f"{options.model}: perplexity of what takes part, context {options.length}"
    table = Table(title=title, box=SIMPLE_HEAD)
    for column in ("neurons chosen by", *(f"{rate:g} left out" for rate in rates)):
        table.add_column(column, justify="left" if column.startswith("neurons") else "right")
    found = {}
    model, tokenizer = load_model(options.model)
    dense, data = trace(model, tokenizer=tokenizer), load_data(text, tokenizer, options.length)
    for name, how in WAYS.items():
        program = parse(f"insert-omission{{{how}}}").run(dense.clone())
        found[name] = perplexities(program, data, rates, options.limit, options.batch)
        table.add_row(name, *(f"{value:.1f}" for value in found[name]))
    console.print(table)
    if options.json:
        write_json(options.json, {"machine": machine(), "rates": rates, "perplexity": found})


if __name__ == "__main__":
    main()
