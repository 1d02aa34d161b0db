"""The folders that generation.py measures: one dense model, written in every way."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from child import printed_by
from ort_rounded import dynamic_int8
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sparsify import Program, export, load_model, parse, trace
from sparsify.disk.files import read_json, write_json
from sparsify.pretrained.quiet import quiet

ROWS = "rows.json"
DENSE, INT4 = "ours, dense float32", "ours, dense int4"
HALF = (
    "insert-masks{of=heads,channels} | choose-masks{of=heads,channels sparsity=0.5} | "
    "prune-heads | prune-channels"
)
ROUND = "insert-quantizers{values=%s} | choose-scales | pack-nm{pattern=%s values=%s}"
ENDS = "insert-quantizers{values=%s group=32 ends=true} | choose-scales | pack-dense"
# What a peer's environment does with a folder; {0} is the folder, {1} the one to write.
_OPTIMUM = (
    "from optimum.onnxruntime import ORTModelForCausalLM as M; "
    "M.from_pretrained({0!r}, export=True).save_pretrained({1!r})"
)


@dataclass(frozen=True)
class Row:
    """A folder to measure: `kind` is the worker's; `exact` the logits it should give, as a file."""

    name: str
    kind: str
    folder: Path
    exact: Path

    @property
    def size(self) -> int:
        """Bytes on disk of the weights and the graph."""
        files = (*self.folder.glob("*.onnx*"), *self.folder.glob("*.safetensors"))
        return sum(file.stat().st_size for file in files)


def store_rows(found: Sequence[Row], place: Path) -> None:
    """Note in a folder which models stand there."""
    rows = [{key: str(value) for key, value in asdict(row).items()} for row in found]
    write_json(place / ROWS, rows)


def stored_rows(place: Path) -> list[Row]:
    """The models that stand in a folder, none where nothing is noted."""
    if not (place / ROWS).is_file():
        return []
    return [
        Row(**{**row, "folder": Path(row["folder"]), "exact": Path(row["exact"])})
        for row in read_json(place / ROWS)
    ]


def zeros(pattern: str) -> str:
    return f"insert-masks | choose-masks{{pattern={pattern}}} | fold-masks"


def rounded(values: str, pattern: str) -> str:
    return f"{ROUND % (values, pattern, values)} | {ENDS % values}"


# Name -> what prunes the float32 model, and what packs it.
OURS = {
    DENSE: ("", ""),
    INT4: ("", ENDS % "int4"),
    "half removed float32": (HALF, ""),
    "2:4 float32": (zeros("2:4"), "pack-nm"),
    "2:4 int8": (zeros("2:4"), rounded("int8", "2:4")),
    "2:4 int4": (zeros("2:4"), rounded("int4", "2:4")),
    "2:8 int4": (zeros("2:8"), rounded("int4", "2:8")),
    "half removed, 2:4 int4": (f"{HALF} | {zeros('2:4')}", rounded("int4", "2:4")),
}


def write_dense(options: argparse.Namespace, folder: Path) -> Path:
    """Random weights of a shape, and a tokenizer, which the model builder wants to see."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // options.head_size,
        num_key_value_heads=max(1, options.hidden // options.head_size // 2),
        vocab_size=options.vocabulary,
        max_position_embeddings=2048,
    )
    with quiet():
        LlamaForCausalLM(config).save_pretrained(folder)
        load_model("embedded")[1].save_pretrained(folder)
    return folder


def rows(options: argparse.Namespace, place: Path, ids: Path) -> Iterator[Row]:
    """Every folder, written as it is asked for."""
    hf = write_dense(options, place / "transformers")
    for name, pipelines in OURS.items():
        yield _ours(name, *pipelines, hf, place, ids)
    exact, dense = place / f"{_slug(DENSE)}.npy", place / _slug(DENSE) / "onnx-decode"
    yield Row("transformers, eager", "transformers", hf, exact)
    path = dynamic_int8(dense / "model.onnx", place / "dynamic-int8")
    yield Row("dense int8, quantize_dynamic", "onnx", path.parent, exact)
    if options.optimum:
        folder = place / "optimum"
        _call([options.optimum, "-c", _OPTIMUM.format(str(hf), str(folder))])
        yield Row("Optimum, dense float32", "onnx", folder, exact)
    for precision in ("fp32", "int4") if options.peer else ():
        folder = place / f"genai-{precision}"
        words = ["-m", "onnxruntime_genai.models.builder", "-i", str(hf), "-o", str(folder)]
        cache = ["-c", str(place / "cache")]
        _call([options.peer, *words, "-p", precision, "-e", "cpu", *cache])
        yield Row(f"genai builder, dense {precision}", "genai", folder, exact)


def _ours(name: str, prune: str, pack: str, hf: Path, place: Path, ids: Path) -> Row:
    program = trace(load_model(str(hf))[0].float().eval())
    if prune:
        parse(prune).run(program)
    exact = place / f"{_slug(name)}.npy"
    np.save(exact, _logits(program, torch.from_numpy(np.load(ids))).numpy())
    if pack:
        parse(pack).run(program)
    folder = export(program, place / _slug(name), ["onnx-decode"])["onnx-decode"]
    return Row(name, "onnx", folder, exact)


def _logits(program: Program, ids: Tensor) -> Tensor:
    places = torch.arange(ids.shape[1])[None]
    return program.run(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": places}
    )[0]


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def _call(words: list[str]) -> None:
    printed_by(" ".join(words[:3]), words)
