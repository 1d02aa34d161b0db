"""Save and load a program: safetensors for every tensor, JSON for the graph and the plan, no pickle.

A folder holds `program.json`, `tensors.safetensors`, `sample.safetensors` and the tokenizer's files. The
graph itself is stored, so that loading neither traces again nor depends on the model's library version.
`program.txt` is for people and `show`; nothing is built from it.
"""

import contextlib
import json
import logging
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, fx

from sparsify.disk.digests import of_json, of_text
from sparsify.disk.files import (
    new_folder,
    read_json,
    require_file,
    require_files,
    write_json,
    write_text,
)
from sparsify.disk.hashes import check_equal, of_tensor
from sparsify.disk.locks import locked
from sparsify.disk.program_text import DOCUMENT, TEXT
from sparsify.disk.weights_file import write_tensors
from sparsify.errors import DataError, VerifyError, reason_of
from sparsify.ir.bounds import refuse_huge
from sparsify.ir.program import Program, Source
from sparsify.ir.storage.document import check_document
from sparsify.ir.storage.graph_json import graph_from_json, graph_to_json
from sparsify.ir.storage.nodes import shown
from sparsify.ir.text import header, to_text
from sparsify.ir.types import propagate
from sparsify.ir.verify import verify as check_program
from sparsify.plugins import load_plugins
from sparsify.pretrained.load import load_tokenizer
from sparsify.pretrained.origin import of_hub, without_places
from sparsify.tensors.packing.bits import pack_bits, unpack_bits

FORMAT, VERSION = "sparsify-program", 1
_BITS = "bits:"
_TENSORS, _SAMPLE = "tensors.safetensors", "sample.safetensors"


def save(program: Program, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a program into a folder, exactly: the same text and bitwise the same tensors come back.

    Raises DataError when the folder is not empty and `overwrite` is not given, the disk is full, or another
    process is writing there.
    """
    folder = Path(folder)
    with locked(folder), new_folder(folder, overwrite=overwrite) as temporary:
        write(program, temporary)
    return folder


def write(program: Program, folder: Path) -> None:
    """Write a program's files into an existing folder; the same bytes for the same program."""
    tensors = dict(program.tensors())
    stored = {_key(path, value): _stored(value) for path, value in tensors.items()}
    sample = {name: value.contiguous() for name, value in program.sample.items()}
    about = _describe(program, tensors)
    try:
        check_document(about)
    except DataError as error:
        raise DataError(f"the program cannot be stored: {error}") from None
    text = f"{header(program)}\n{to_text(program)}"
    about["hashes"] = {
        DOCUMENT: of_json(about),
        TEXT: of_text(text),
        **{f"{_SAMPLE}: {name}": of_tensor(value) for name, value in sample.items()},
        **{key: of_tensor(value) for key, value in stored.items()},
    }
    log = " | ".join(program.log)
    write_tensors(folder / _TENSORS, stored, {"format": "pt", "sparsify.pipeline": log})
    write_tensors(folder / _SAMPLE, sample)
    write_json(folder / DOCUMENT, about)
    write_text(folder / TEXT, text)
    if program.tokenizer is not None:
        program.tokenizer.save_pretrained(folder)


def load(folder: str | Path, *, verify: bool = True, trust_remote_code: bool = False) -> Program:
    """The program that `save` wrote; code that comes with its tokenizer runs only when trusted.

    Every name, type, size and op is checked before anything is built. `verify=False` leaves out the hashes
    of the tensors, for one who has changed them. Raises DataError naming the file and the tensor when
    something is missing, damaged or foreign.
    """
    load_plugins()  # whose ops and features it may hold
    folder = Path(folder)
    file = folder / DOCUMENT
    about = read_json(file)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise DataError(f"'{file}' was not written by sparsify")
    if about.get("version") != VERSION:
        raise DataError(
            f"'{folder}' has format version {shown(about.get('version'))}; "
            f"this sparsify reads {VERSION}"
        )
    try:
        inputs, reads = check_document(about)
    except DataError as error:
        raise DataError(f"'{file}' is damaged: {error}") from None
    sample = _sample(folder / _SAMPLE, inputs, about)
    stored = _read(folder / _TENSORS)
    _match(stored, reads, about["bits"], folder / _TENSORS)
    if verify and "hashes" in about:
        _check_hashes(about, sample, stored, folder)
    program = _build(about, sample, stored, folder)
    program.tokenizer = _tokenizer(folder, trust_remote_code)
    return program


def is_program(folder: str | Path) -> bool:
    """Whether a folder holds a saved program."""
    return (Path(folder) / DOCUMENT).is_file()


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
        "limits": {name: list(ends) for name, ends in program.limits.items()},
        "aliases": program.aliases,
        "parameters": parameters,
        "bits": bits,
        "graph": graph_to_json(program.graph),
    }


def _build(
    about: dict[str, Any], sample: dict[str, Tensor], stored: dict[str, Tensor], folder: Path
) -> Program:
    """The program of files that were checked; DataError when its parts do not fit each other."""
    program = Program(
        module=fx.GraphModule(torch.nn.Module(), fx.Graph()),
        sample=sample,
        dynamic={k: {int(d): name for d, name in v.items()} for k, v in about["dynamic"].items()},
        source=_source(about["source"]),
        features=frozenset(about["features"]),
        plan=about["plan"],
        log=list(about["pipeline"]),
        aliases=about["aliases"],
        limits={name: (least, most) for name, (least, most) in about.get("limits", {}).items()},
    )
    try:
        with _without_traces():
            _put_tensors(program, about, stored)
            program.module = fx.GraphModule(program.module, graph_from_json(about["graph"]))
            propagate(program)
            refuse_huge(program)
            check_program(program)
    except VerifyError:
        raise
    except Exception as error:  # of torch, for any of the ways in which a graph is no program
        raise DataError(
            f"'{folder}' is damaged: its graph does not fit its tensors: {reason_of(error)}"
        ) from error
    return program


def _source(said: dict[str, Any]) -> Source:
    """What a document says of the source; earlier versions kept a path in its config, and no origin."""
    place = said["config"].get("_name_or_path")
    return Source(
        without_places(said["config"]),
        said["model_class"],
        said["output_class"],
        tuple(said["outputs"]),
        {path: tuple(shape) for path, shape in said.get("shapes", {}).items()},
        said.get("generation", {}),
        said.get("files", {}),
        said["origin"] if "origin" in said else of_hub(str(place or "")),
        said.get("known", {}),
    )


@contextlib.contextmanager
def _without_traces() -> Iterator[None]:
    """Keep torch from printing where an op failed that a damaged graph calls."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


def _put_tensors(program: Program, about: dict[str, Any], stored: dict[str, Tensor]) -> None:
    for key, tensor in stored.items():
        path = key.removeprefix(_BITS)
        value = unpack_bits(tensor, tuple(about["bits"][path])) if key != path else tensor
        trainable = about["parameters"].get(path)
        if trainable and not (value.is_floating_point() or value.is_complex()):
            raise DataError(f"'{path}' is {value.dtype}, which cannot be trained")
        program.put(path, value, trainable=trainable)


def _match(stored: Collection[str], reads: set[str], bits: Collection[str], file: Path) -> None:
    """Refuse tensors that the graph reads and the file lacks, and the other way round."""
    known = {_BITS + path if path in bits else path for path in reads}
    for key in sorted(known - set(stored)):
        raise DataError(f"'{file}' lacks the tensor '{key.removeprefix(_BITS)}'")
    for key in sorted(set(stored) - known):
        raise DataError(f"'{file}' holds the tensor {shown(key)}, which the graph does not read")


def _sample(file: Path, inputs: list[str], about: dict[str, Any]) -> dict[str, Tensor]:
    """The sample by input, in the order of the graph, whatever order the file kept."""
    found = _read(file)
    if set(found) != set(inputs):
        raise DataError(
            f"'{file}' holds the inputs {shown(sorted(found))}, the graph takes {shown(inputs)}"
        )
    for name, dims in about["dynamic"].items():
        if any(int(dim) >= found[name].dim() for dim in dims):
            raise DataError(
                f"'{file}' holds '{name}' {list(found[name].shape)}, "
                f"where the dimensions {', '.join(dims)} vary"
            )
    if any(value.numel() == 0 for value in found.values()):
        raise DataError(f"'{file}' holds an empty input")
    return {name: found[name] for name in inputs}


def _check_hashes(
    about: dict[str, Any], sample: dict[str, Tensor], stored: dict[str, Tensor], folder: Path
) -> None:
    known: dict[str, str] = about["hashes"]
    rest = {key: value for key, value in about.items() if key != "hashes"}
    check_equal([(DOCUMENT, of_json(rest))], known, folder / DOCUMENT)
    named = ((f"{_SAMPLE}: {name}", of_tensor(value)) for name, value in sample.items())
    check_equal(named, known, folder / _SAMPLE)
    check_equal(((k, of_tensor(v)) for k, v in stored.items()), known, folder / _TENSORS)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        require_file(path)
        with safe_open(path, framework="pt") as file:
            # Copied: products of matrices that lie unaligned in a mapped file round differently.
            return {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise DataError(f"'{path.parent}' has no {path.name}") from error
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"'{path}' is damaged: {reason_of(error)}") from error


def _tokenizer(folder: Path, trust: bool) -> Any:
    """The tokenizer of a folder, None when it has none; DataError when its files are damaged."""
    if not (folder / "tokenizer_config.json").is_file():
        return None
    require_files(folder)
    return load_tokenizer(str(folder), trust_remote_code=trust)


def _key(path: str, value: Tensor) -> str:
    return _BITS + path if value.dtype == torch.bool else path


def _stored(value: Tensor) -> Tensor:
    return pack_bits(value) if value.dtype == torch.bool else value.detach().contiguous().clone()
