"""Save and load a program: safetensors for every tensor, JSON for the graph and the plan, no pickle.

A folder holds `program.json`, `tensors.safetensors`, `sample.safetensors` and the tokenizer's files. The
graph itself is stored, so that loading neither traces again nor depends on the model's library version.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, fx

from sparsify.errors import DataError
from sparsify.files import new_folder, read_json, write_json
from sparsify.ir.pretrained import load_tokenizer
from sparsify.ir.program import Program, Source
from sparsify.ir.serial import graph_from_json, graph_to_json
from sparsify.ir.surroundings import checked_files
from sparsify.ir.types import propagate
from sparsify.ir.verify import verify
from sparsify.tensors.bits import pack_bits, unpack_bits

FORMAT, VERSION = "sparsify-program", 1
_BITS = "bits:"


def save(program: Program, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a program into a folder, exactly: the same text and bitwise the same tensors come back.

    Raises DataError when the folder is not empty and `overwrite` is not given, or the disk is full.
    """
    folder = Path(folder)
    with new_folder(folder, overwrite=overwrite) as temporary:
        write(program, temporary)
    return folder


def write(program: Program, folder: Path) -> None:
    """Write a program's files into an existing folder."""
    tensors = dict(program.tensors())
    save_file(
        {_key(path, value): _stored(value) for path, value in tensors.items()},
        folder / "tensors.safetensors",
        metadata={"format": "pt", "sparsify.pipeline": " | ".join(program.log)},
    )
    save_file({k: v.contiguous() for k, v in program.sample.items()}, folder / "sample.safetensors")
    write_json(folder / "program.json", _describe(program, tensors))
    if program.tokenizer is not None:
        program.tokenizer.save_pretrained(folder)


def load(folder: str | Path) -> Program:
    """The program that `save` wrote.

    Raises DataError naming the file and the tensor when something is missing, damaged or foreign.
    """
    folder = Path(folder)
    about = read_json(folder / "program.json")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise DataError(f"'{folder / 'program.json'}' was not written by sparsify")
    if about.get("version") != VERSION:
        raise DataError(
            f"'{folder}' has format version {about.get('version')}; this sparsify reads {VERSION}"
        )
    try:
        return _build(about, folder)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"'{folder / 'program.json'}' is damaged: {error!r}") from error


def is_program(folder: str | Path) -> bool:
    """Whether a folder holds a saved program."""
    return (Path(folder) / "program.json").is_file()


def _describe(program: Program, tensors: dict[str, Tensor]) -> dict[str, Any]:
    parameters = {
        k: v.requires_grad for k, v in tensors.items() if isinstance(v, torch.nn.Parameter)
    }
    bits = {k: list(v.shape) for k, v in tensors.items() if v.dtype == torch.bool}
    source = asdict(program.source)
    return {
        "format": FORMAT,
        "version": VERSION,
        "pipeline": list(program.log),
        "features": sorted(program.features),
        "plan": program.plan,
        "source": json.loads(json.dumps(source, default=str)),
        "dynamic": {k: {str(d): name for d, name in v.items()} for k, v in program.dynamic.items()},
        "aliases": program.aliases,
        "parameters": parameters,
        "bits": bits,
        "graph": graph_to_json(program.graph),
    }


def _build(about: dict[str, Any], folder: Path) -> Program:
    root = torch.nn.Module()
    sample = _read(folder / "sample.safetensors")
    dynamic = {k: {int(d): name for d, name in v.items()} for k, v in about["dynamic"].items()}
    source = about["source"]
    program = Program(
        module=fx.GraphModule(root, fx.Graph()),
        sample=sample,
        dynamic=dynamic,
        source=Source(
            source["config"],
            source["model_class"],
            source["output_class"],
            tuple(source["outputs"]),
            {path: tuple(shape) for path, shape in source.get("shapes", {}).items()},
            source.get("generation", {}),
            checked_files(source.get("files", {})),
        ),
        features=frozenset(about["features"]),
        plan=about["plan"],
        log=list(about["pipeline"]),
        aliases=about["aliases"],
        tokenizer=load_tokenizer(str(folder)) if _has_tokenizer(folder) else None,
    )
    for key, stored in _read(folder / "tensors.safetensors").items():
        path = key.removeprefix(_BITS)
        value = unpack_bits(stored, tuple(about["bits"][path])) if key != path else stored
        program.put(path, value, trainable=about["parameters"].get(path))
    graph = graph_from_json(about["graph"])
    _match(program, graph, folder / "tensors.safetensors")
    program.module = fx.GraphModule(program.module, graph)
    _order_sample(program)
    try:
        propagate(program)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"'{folder}' is damaged: its graph does not fit its tensors: {reason}"
        ) from error
    verify(program)
    return program


def _match(program: Program, graph: fx.Graph, file: Path) -> None:
    """Refuse tensors that the graph reads and the file lacks, and the other way round."""
    known = {str(node.target): None for node in graph.nodes if node.op == "get_attr"}
    for path in known:
        if not program.has(path):
            raise DataError(f"'{file}' lacks the tensor '{path}'")
    for path, _ in program.tensors():
        if path not in known:
            raise DataError(f"'{file}' holds the tensor '{path}', which the graph does not read")


def _order_sample(program: Program) -> None:
    """Inputs in the order of the graph, whatever order the file kept."""
    names = [str(node.target) for node in program.graph.nodes if node.op == "placeholder"]
    program.sample = {name: program.sample[name] for name in names}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            # Copied: products of matrices that lie unaligned in a mapped file round differently.
            return {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise DataError(f"'{path.parent}' has no {path.name}") from error
    except (SafetensorError, OSError) as error:
        raise DataError(f"'{path}' is damaged: {error}") from error


def _key(path: str, value: Tensor) -> str:
    return _BITS + path if value.dtype == torch.bool else path


def _stored(value: Tensor) -> Tensor:
    return pack_bits(value) if value.dtype == torch.bool else value.detach().contiguous().clone()


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").is_file()
