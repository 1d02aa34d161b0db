"""Perplexity of the embedded model at 2:4 and int4, without and with low-rank branches beside the weights.

No retraining. Rows: how masks and scales are chosen; columns: no branch, a plain decomposition of what the
weights lost, SLiM's by the saliency of inputs, the same with branches of 4 bits, and one by the whole Gram
matrix. Then what each loses of the output of a linear, by its place: ||X (W - W')^T|| / ||X W^T||, mean over
the layers. Calibrated on the first part of the held-out text, perplexity on the last.

    python benchmarks/slim.py [--length 128] [--seeds 3] [--limit 100] [--ratio 0.1] [--json FILE]
"""

import argparse
import statistics
from collections import defaultdict
from importlib import resources
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparsify import Context, Program, load_data, load_model, parse, trace
from sparsify.data.sequences import split
from sparsify.disk.files import write_json
from sparsify.ir.features.beside import branches_beside
from sparsify.ir.tensor_names import adapter
from sparsify.ir.views.linear import effective_weight, out_in
from sparsify.measure.quality import perplexity
from sparsify.select.dense_twin import Dense
from sparsify.select.statistics import statistics_of

SEEN = (
    "insert-probes{{gram=true}} | calibrate{{samples={samples}}} | insert-masks | "
    "insert-quantizers{{values=int4 group=128}}"
)
# How the masks and the one scale of each weight are chosen, and the joint sweep, a scale for 128 inputs. Only
# Wanda leaves what it keeps as it was, so that it can absorb what the branches say.
STARTS = {
    "Wanda": ("choose-scales{by=histogram} | choose-masks{score=wanda pattern=2:4}", True),
    "SparseGPT, then scales": (
        "choose-masks{score=sparsegpt pattern=2:4} | choose-scales{by=histogram}",
        False,
    ),
    "SparseGPT, then scales of groups": (
        "choose-masks{score=sparsegpt pattern=2:4} | choose-scales{by=mse}",
        False,
    ),
    "SparseGPT, jointly": ("choose-masks{score=sparsegpt pattern=2:4 scales=mse}", False),
}
BRANCHES = ("none", "naive", "slim", "slim, 4 bits", "gram")
# What rounds the branches: the weights beside them are folded as they are rounded, inputs left alone.
FOUR_BITS = (
    "remove-probes | fold-masks | pack-nm{values=int4} | "
    "insert-quantizers{values=int4 group=128 activations=false targets=*_adapter_*} | "
    "choose-scales{targets=*_adapter_*} | fold-quantizers"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="sequences to measure on; else all")
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--samples", type=int, default=128, help="of calibration")
    parser.add_argument("--start", action="append", choices=STARTS, help="one row alone; repeat")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model, tokenizer = load_model("embedded")
    held_out = str(resources.files("sparsify") / "embedded" / "heldout.txt")
    training, testing = split(load_data(held_out, tokenizer, options.length), 0.8)
    dense = trace(model, tokenizer=tokenizer)

    def measure(program: Program) -> float:
        return perplexity(lambda b: program.run(b)[0], testing, limit=options.limit).value

    figures: dict[tuple[str, str], list[float]] = defaultdict(list)
    errors: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for seed in range(options.seeds):
        context = Context(data=training, seed=seed, dense=dense)
        for start in options.start or STARTS:
            chosen, absorbs = STARTS[start]
            seen = SEEN.format(samples=options.samples)
            text = f"{seen} | {chosen} | insert-adapters{{ratio={options.ratio}}}"
            program = parse(text).run(dense.clone(), context, compare=False)
            for branch in BRANCHES:
                by, _, rounded = branch.partition(", ")
                made = program.clone()
                if branch != "none":
                    absorb = f" absorb={str(absorbs).lower()}"
                    parse(f"choose-adapters{{by={by}{absorb}}}").run(made, context, compare=False)
                errors[start, branch].append({} if rounded else lost(made, dense))
                if rounded:
                    parse(FOUR_BITS).run(made, context, compare=False)
                figures[start, branch].append(measure(made))
    show(measure(dense), figures, errors, options.length)
    if options.json:
        rows = [
            {"start": start, "branch": branch, "perplexity": values, "error": errors[start, branch]}
            for (start, branch), values in figures.items()
        ]
        write_json(options.json, rows)


@torch.no_grad()
def lost(program: Program, dense: Program) -> dict[str, float]:
    """The relative error of the outputs of linears, by place, mean over the layers."""
    twin, found = Dense(program, dense), defaultdict(list)
    for one in branches_beside(program, adapter):
        view, wanted = one.linear, twin.weight(one.linear).double()
        gram = statistics_of(program, view.x, view.weight).gram
        assert gram is not None
        branch = program.tensor(one.b) @ program.tensor(one.a)
        error = wanted - out_in(view, effective_weight(program, view)) - branch
        size = ((m @ gram.double() * m).sum().sqrt() for m in (error, wanted))
        found[view.weight.split(".")[-2]].append(float(next(size) / next(size)))
    return {place: statistics.mean(values) for place, values in found.items()}


def show(
    dense: float,
    figures: dict[tuple[str, str], list[float]],
    errors: dict[tuple[str, str], list[dict[str, float]]],
    length: int,
) -> None:
    """Both tables."""
    title = f"perplexity at 2:4 and int4, context {length}; dense {dense:.2f}"
    table = Table("masks and scales", *BRANCHES, title=title, box=SIMPLE_HEAD)
    for start in dict.fromkeys(start for start, _ in figures):
        cells = [figures[start, branch] for branch in BRANCHES]
        table.add_row(start, *(f"{statistics.mean(c):.2f} ({max(c) - min(c):.2f})" for c in cells))
    console = Console(width=150)
    console.print(table)
    print("in brackets: largest minus smallest over the seeds of the calibration sample")
    places = list(next(iter(errors.values()))[0])
    table = Table(
        "masks and scales", "branch", *places, title="error of the output", box=SIMPLE_HEAD
    )
    for (start, branch), found in errors.items():
        if found[0]:
            means = (statistics.mean(one[place] for one in found) for place in places)
            table.add_row(start, branch, *(f"{value:.3f}" for value in means))
    console.print(table)


if __name__ == "__main__":
    main()
