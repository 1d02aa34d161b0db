"""A model larger than the memory it is pruned in: the plan of the run, and the run.

A Llama of TinyLlama's shape (1.1 billion parameters) with random weights is written layer by layer in
bfloat16, planned, and pruned with SparseGPT to 2:4, both in processes of their own that tell their peak of
resident memory. `--layers`, `--hidden` and `--intermediate` give another shape; `--plan-only` needs no
weights, as for the shape of 7 billion: `--hidden 4096 --intermediate 11008 --layers 32 --kv-heads 32`.

    python benchmarks/streaming.py [--threads 2] [--json FILE] [--plan-only]
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from child import printed_by
from peak import peak_bytes
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from sparsify import load_data, load_model
from sparsify.disk.files import write_json
from sparsify.measure.machine import machine, machine_line
from sparsify.select.one_shot import OneShot
from sparsify.select.weights import Target
from sparsify.stream.job import Job
from sparsify.stream.plan import plan
from sparsify.stream.prune import prune

# TinyLlama; `head` is the width of a head.
SIZES = {
    "hidden": 2048,
    "intermediate": 5632,
    "layers": 22,
    "head": 64,
    "kv_heads": 4,
    "vocabulary": 32000,
    "samples": 64,
    "length": 512,
    "threads": 2,
}


def write_model(options: argparse.Namespace, folder: Path) -> None:
    """The folder of a Llama with normal weights, one shard a layer; no more than a layer is in memory."""
    _, tokenizer = load_model("embedded")
    config = LlamaConfig(
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // options.head,
        num_key_value_heads=options.kv_heads,
        vocab_size=options.vocabulary,
        max_position_embeddings=2048,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if options.plan_only:
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    shards: dict[str, list[str]] = {}
    for name in model.state_dict():
        parts = name.split(".")
        place = next((number for number in parts if number.isdigit()), "rest")
        shards.setdefault(f"model-{place}.safetensors", []).append(name)
    draw, where, total = torch.Generator().manual_seed(0), {}, 0
    for shard, names in shards.items():
        tensors = {
            name: draw_weight(model.get_parameter(name).shape, draw).to(torch.bfloat16)
            for name in names
        }
        save_file(tensors, folder / shard, {"format": "pt"})
        where |= dict.fromkeys(names, shard)
        total += sum(tensor.nbytes for tensor in tensors.values())
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": where},
    )


def draw_weight(shape: torch.Size, draw: torch.Generator) -> torch.Tensor:
    """Ones for a norm, else normal with the standard deviation Llama starts from."""
    return torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=draw) * 0.02


def job_of(options: argparse.Namespace) -> Job:
    return Job(
        str(options.scratch / "model"),
        OneShot("sparsegpt", Target.of(None, "2:4")),
        options.scratch / "out",
        samples=options.samples,
        ignore=("lm_head*",),
    )


def work(options: argparse.Namespace) -> None:
    """Write the model, plan or prune in this process; print what the latter two took as a line of JSON."""
    if options.part == "write":
        write_model(options, options.scratch / "model")
        return
    torch.set_num_threads(options.threads)
    job, started, processor = job_of(options), time.perf_counter(), time.process_time()
    answer: dict[str, Any] = {}
    if options.part == "plan":
        found = plan(job, options.length)
        answer = {"plan": asdict(found) | {"seconds": found.seconds}}
    else:
        text = str(resources.files("sparsify") / "embedded" / "heldout.txt")
        _, tokenizer = load_model("embedded")
        prune(job, load_data(text, tokenizer, options.length))
    answer |= {
        "seconds": time.perf_counter() - started,
        "processor": time.process_time() - processor,
        "peak": peak_bytes(),
    }
    print(json.dumps(answer))


def ran(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """What `work` says in a process of its own."""
    words = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in SIZES]
    words += ["--plan-only"] * options.plan_only
    command = [sys.executable, __file__, "--part", part, "--scratch", str(options.scratch), *words]
    printed = printed_by(part, command)
    found: dict[str, Any] = json.loads(printed.splitlines()[-1] if printed else "{}")
    return found


def check(folder: Path) -> float:
    """The share of groups of four with two zeros, over every pruned weight of the folder."""
    whole = groups = 0
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (a reader of a file, not a mapping)
                if ".layers." in name and "proj" in name:
                    zeros = (stored.get_tensor(name).unflatten(-1, (-1, 4)) == 0).sum(-1)
                    whole, groups = whole + int((zeros >= 2).sum()), groups + zeros.numel()
    return whole / groups


def show(found: dict[str, Any], console: Console) -> None:
    table = Table(box=SIMPLE_HEAD)
    for column in ("", "planned", "measured"):
        table.add_column(column, justify="left" if not column else "right")
    estimate, run = found["plan"]["plan"], found.get("prune", {})
    for row in ("forward", "sums", "choices"):
        table.add_row(f"{row}, s", f"{estimate[row]:.0f}", "")
    seconds = f"{run['seconds']:.0f} ({run['processor']:.0f} of processor)" if run else ""
    table.add_row("together, s", f"{estimate['seconds']:.0f}", seconds)
    peak = f"{run['peak'] / 1e9:.2f}" if run else ""
    table.add_row("peak, GB", f"{estimate['memory'] / 1e9:.2f}", peak)
    console.print(table)
    took = found["plan"]
    console.print(f"planning took {took['seconds']:.0f} s and {took['peak'] / 1e9:.2f} GB")
    if run:
        console.print(f"groups of four with two zeros: {found['groups']:.4%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for size, value in SIZES.items():
        parser.add_argument(f"--{size.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--plan-only", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", choices=("write", "plan", "prune"), help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        work(options)
        return
    console = Console(width=100)
    console.print(machine_line(machine()), f"{options.threads} threads")
    with tempfile.TemporaryDirectory() as name:
        options.scratch = Path(name)
        ran("write", options)
        found: dict[str, Any] = {"plan": ran("plan", options)}
        if not options.plan_only:
            found["prune"] = ran("prune", options)
            found["groups"] = check(options.scratch / "out")
    show(found, console)
    if options.json:
        sizes = {name: getattr(options, name) for name in SIZES}
        write_json(options.json, {"options": sizes, "machine": machine(), **found})


if __name__ == "__main__":
    main()
