"""Perplexity of the embedded model after heads and channels were removed at once, by every criterion.

Calibrated on the first part of the held-out text, measured on the last, without retraining. Uniform: every
layer loses the same part of its KV groups and of its channels; global: one ranking over all layers and both
kinds, the same part of their parameters. With bias: what `choose-bias` adds. Random masks are the floor.

    python benchmarks/structured_criteria.py [--rates 0.25,0.5] [--seeds 2] [--limit 100] [--json FILE]
"""

import argparse
import statistics
from importlib import resources
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import Context, Program, load_data, load_model, parse, trace
from sparsify.data.sequences import Data, split
from sparsify.disk.files import write_json
from sparsify.ir.features.group_mask import group_masks
from sparsify.measure.quality import perplexity

CRITERIA = (
    "random",
    "magnitude",
    "wanda",
    "activation",
    "fluctuation",
    "taylor",
    "first-order",
    "second-order",
    "mixed",
)
BASE = "insert-probes | calibrate{samples=128} | insert-masks{of=heads,channels} | insert-bias"
COLUMNS = ("uniform", "uniform + bias", "global", "global + bias")


def choose(program: Program, criterion: str, rate: float, scope: str, context: Context) -> None:
    """Choose the masks of a calibrated program; a masked program computes what the pruned one does."""
    if criterion == "random":
        _fill_at_random(program, rate, context.seed)
        return
    options = f"score={criterion} sparsity={rate} scope={scope} samples=32"
    _do(f"choose-masks{{of=heads,channels {options}}}", program, context)


def _do(text: str, program: Program, context: Context) -> None:
    """Run passes that move values alone, without the checks between passes: hundreds are run here."""
    for item in parse(text).passes:
        item.rewrite(program, context)


def _reset(program: Program) -> None:
    with torch.no_grad():
        for path, value in program.tensors():
            if path.endswith("_added_bias"):
                value.zero_()
            elif path.endswith(("_heads_mask", "_channels_mask")):
                value.fill_(True)


def _fill_at_random(program: Program, rate: float, seed: int) -> None:
    """The same part of each site's KV groups (pairs of heads here) and channels, drawn."""
    generator = torch.Generator().manual_seed(seed)
    for mask in group_masks(program):
        value = program.tensor(mask.path)
        width = 2 if mask.kind == "heads" else 1
        units = torch.ones(value.numel() // width, dtype=torch.bool)
        units[torch.randperm(len(units), generator=generator)[: int(len(units) * rate)]] = False
        value.copy_(units.repeat_interleave(width))


def row(
    program: Program, criterion: str, rate: float, context: Context, testing: Data, limit: int
) -> dict[str, float]:
    """Perplexity of each column."""
    found = {}
    for scope, name in (("auto", "uniform"), ("global", "global")):
        if criterion == "random" and scope == "global":
            continue
        _reset(program)
        choose(program, criterion, rate, scope, context)
        found[name] = perplexity(lambda b: program.run(b)[0], testing, limit=limit).value
        _do("choose-bias", program, context)
        found[f"{name} + bias"] = perplexity(
            lambda b: program.run(b)[0], testing, limit=limit
        ).value
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", default="0.25,0.5")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--limit", type=int, default=100, help="sequences to measure on")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model, tokenizer = load_model("embedded")
    held_out = str(resources.files("sparsify") / "embedded" / "heldout.txt")
    training, testing = split(load_data(held_out, tokenizer, options.length), 0.8)
    dense = trace(model)
    value = perplexity(lambda b: dense.run(b)[0], testing, limit=options.limit).value
    print(f"dense {value:.2f}, context {options.length}, {options.limit} sequences", flush=True)
    contexts = [Context(data=training, seed=seed) for seed in range(options.seeds)]
    bases = [parse(BASE).run(dense.clone(), context, compare=False) for context in contexts]
    rows: list[dict[str, object]] = [{"criterion": "dense", "uniform": value}]
    for rate in (float(word) for word in options.rates.split(",")):
        table = Table(title=f"{rate:.0%} removed", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in ("criterion", *COLUMNS):
            table.add_column(column, no_wrap=True)
        for criterion in CRITERIA:
            found = [
                row(base, criterion, rate, context, testing, options.limit)
                for base, context in zip(bases, contexts, strict=True)
            ]
            figures = {name: [one[name] for one in found] for name in found[0]}
            rows.append({"criterion": criterion, "rate": rate, **figures})
            cells = [
                f"{statistics.mean(figures[name]):.2f} ({max(figures[name]) - min(figures[name]):.2f})"
                if name in figures
                else ""
                for name in COLUMNS
            ]
            table.add_row(criterion, *cells)
            print(rate, criterion, *cells, flush=True)
            if options.json:
                write_json(options.json, rows)
        Console().print(table)
    print("mean over seeds of the calibration sample; in brackets largest minus smallest")


if __name__ == "__main__":
    main()
