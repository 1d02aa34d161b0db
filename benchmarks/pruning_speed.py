"""How long one-shot pruning takes, side by side with llm-compressor in an environment of its own.

The same model, calibration sequences, threads and machine; runs in turn, each in a process of its own that
reads a folder and writes another. Layer by layer is the order of the peer: equal losses say that both do
the same. Rows of the peer: one sequence at a time, as it does unless told, and eight. Losses are those of
the written folders on held-out text.

    python -m venv peer && peer/bin/pip install llmcompressor
    python benchmarks/pruning_speed.py --peer peer/bin/python [--hidden 1024 --layers 8] [--json FILE]
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from child import printed_by
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from sparsify import load_data, load_model
from sparsify.data.sequences import Data
from sparsify.disk.files import write_json
from sparsify.measure.machine import machine, machine_line
from sparsify.measure.quality import perplexity
from sparsify.pretrained.quiet import quiet

WORKER = Path(__file__).with_name("pruning_worker.py")
# Held-out tokens that a written folder is measured on.
TOKENS = 12800
OURS = "ours, layer by layer"
SIDES = {
    OURS: "ours-layer",
    "ours, linear by linear": "ours-linear",
    "llm-compressor": "peer1",
    "llm-compressor, 8 at a time": "peer8",
}


def folder_of(options: argparse.Namespace, scratch: Path) -> Path:
    """The model in float32: the embedded one, or random weights of a shape."""
    model, tokenizer = load_model("embedded")
    if options.hidden:
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=options.hidden,
            intermediate_size=options.hidden * 11 // 4,
            num_hidden_layers=options.layers,
            num_attention_heads=options.hidden // 64,
            num_key_value_heads=options.hidden // 128,
            vocab_size=len(tokenizer),
        )
        model = LlamaForCausalLM(config)
    with quiet():
        model.float().save_pretrained(scratch / "model")
        tokenizer.save_pretrained(scratch / "model")
    return scratch / "model"


def once(
    python: str, side: str, folder: Path, tokens: Path, score: str, options: argparse.Namespace
) -> dict[str, Any]:
    """One run of one side: its cost, and the loss of what it wrote."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        words = [python, str(WORKER), side, str(folder), str(tokens), score, str(out)]
        printed = printed_by(side, [*words, str(options.threads)])
        answer: dict[str, Any] = json.loads(printed.splitlines()[-1])
        model, _ = load_model(str(out))
        answer["loss"] = loss_of(model.eval(), options.held_out)
        zeros = [value == 0 for value in model.parameters() if value.dim() == 2]
        answer["zeros"] = sum(int(value.sum()) for value in zeros)
        return answer


def loss_of(model: Any, data: Data) -> float:
    """Nats a token on held-out text."""
    with torch.no_grad():
        found = perplexity(lambda batch: model(**batch).logits, data, limit=TOKENS // data.length)
    return math.log(found.value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", required=True, help="the interpreter of its environment")
    parser.add_argument("--hidden", type=int, help="random weights of this width; else embedded")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--score", action="append", choices=("wanda", "sparsegpt"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    _, tokenizer = load_model("embedded")
    text = str(resources.files("sparsify") / "embedded" / "heldout.txt")
    data = load_data(text, tokenizer, options.length)
    # The first sequences calibrate; what is measured comes after them.
    ids = data.batch(range(options.samples))["input_ids"]
    options.held_out = Rest(data, options.samples)
    console = Console(width=140)
    console.print(machine_line(machine()), f"{options.threads} threads")
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, tokens = folder_of(options, Path(name)), Path(name) / "tokens.safetensors"
        save_file({"ids": ids.contiguous()}, tokens)
        for score in options.score or ("wanda", "sparsegpt"):
            rows = found[score] = {side: [] for side in SIDES}
            for _ in range(options.rounds):
                for side, word in SIDES.items():
                    python = sys.executable if word.startswith("ours") else options.peer
                    rows[side].append(once(python, word, folder, tokens, score, options))
            console.print(table_of(score, rows))
    if options.json:
        kept = {key: str(value) for key, value in vars(options).items() if key != "held_out"}
        write_json(options.json, {"options": kept, "machine": machine(), "scores": found})


class Rest:
    """Data without its first sequences."""

    def __init__(self, data: Data, first: int) -> None:
        self._data, self._first, self.length = data, first, data.length

    def __len__(self) -> int:
        return len(self._data) - self._first

    def batch(self, indices: Any) -> Any:
        """A batch of what is left."""
        return self._data.batch([i + self._first for i in indices])


def table_of(score: str, rows: dict[str, list[dict[str, Any]]]) -> Table:
    """The table of one score; ratios are of runs that stand side by side."""
    table = Table(title=f"{score}, 2:4", box=SIMPLE_HEAD)
    for column in (
        "side",
        "seconds",
        "cpu s",
        "layer by layer over it (least, most)",
        "peak GB",
        "loss",
        "zeros",
    ):
        table.add_column(column, justify="left" if column == "side" else "right", no_wrap=True)
    for side, runs in rows.items():
        ratios = [a["cpu"] / b["cpu"] for a, b in zip(rows[OURS], runs, strict=True)]
        table.add_row(
            side,
            f"{statistics.median(run['seconds'] for run in runs):.1f}",
            f"{statistics.median(run['cpu'] for run in runs):.1f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})",
            f"{max(run['peak'] for run in runs) / 1e9:.2f}",
            f"{runs[0]['loss']:.4f}",
            f"{runs[0]['zeros']:,}",
        )
    return table


if __name__ == "__main__":
    main()
