"""What lies in a folder: our programs, ONNX files, Hugging Face models; and how to run each."""

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsify.commands.bar import step
from sparsify.disk.files import WORK, folders
from sparsify.errors import DataError, OptionError, SparsifyError, reason_of
from sparsify.ir.facts.admission import (
    Admission,
    admission_in,
    admission_of_model,
    admission_of_program,
)
from sparsify.ir.inputs import default_input
from sparsify.ir.program import Program
from sparsify.ir.storage.folder import is_program, load
from sparsify.ir.trace.trace import trace
from sparsify.measure.latency import open_session
from sparsify.pretrained.load import load_model, load_tokenizer
from sparsify.pretrained.loading import STRICT, Loading

Run = Callable[[dict[str, Tensor]], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Artifact:
    """One model on disk: its `kind` (`program`, `onnx`, `huggingface`, `gguf`), how to run it, its tokenizer.

    `admission` says what sequences it takes.
    """

    name: str
    kind: str
    path: Path
    run: Run
    tokenizer: Any
    admission: Admission


def open_program(name: str, loading: Loading = STRICT) -> Program:
    """The program of a run's folder, a saved program, or a Hugging Face folder or id (traced)."""
    folder = Path(name)
    for place in (folder, folder / "safetensors"):
        if is_program(place):
            refuse_for_files(place, loading)
            with step(f"loading {name}"):
                return load(
                    place, verify=loading.verify, trust_remote_code=loading.trust_remote_code
                )
    return traced(*loaded(name, loading))


def loaded(name: str, loading: Loading, dtype: str = "float32") -> tuple[PreTrainedModel, Any]:
    """A Hugging Face model and its tokenizer, with a spinner."""
    with step(f"loading {name}"):
        return load_model(name, dtype, **asdict(loading))


def traced(model: PreTrainedModel, tokenizer: Any) -> Program:
    """The program of a model, with a spinner."""
    with step("tracing"):
        return trace(model, tokenizer=tokenizer)


def artifacts(name: str, loading: Loading = STRICT) -> list[Artifact]:
    """Every model found in a folder and its format folders, or the hub model of that name.

    Raises DataError when there is none.
    """
    folder = Path(name)
    found = []
    for place in (folder, *folders(folder)):
        if is_program(place):
            refuse_for_files(place, loading)
            found.append(_program(place, loading))
        elif (place / "model.onnx").is_file():
            refuse_for_files(place, loading)
            found.append(_onnx(place, loading))
        elif (place / "config.json").is_file():
            found.append(_huggingface(str(place), loading))
    if folder.is_dir() and not found:
        begun = (folder / WORK).is_dir()
        hint = "; a run is going on there or was interrupted" if begun else ""
        raise DataError(f"'{folder}' holds no program, model.onnx or Hugging Face model{hint}")
    return found or [_huggingface(name, loading)]


def refuse_for_files(folder: Path, loading: Loading) -> None:
    """Refuse what is said of a Hugging Face model where a program or an ONNX file is opened; OptionError."""
    for option in ("adapter", "revision"):
        if getattr(loading, option) is not None:
            raise OptionError(
                f"'{folder}' holds what we have written, and --{option} is for Hugging Face models; "
                "give it where the model is first opened"
            )


def guarded(folder: Path, run: Run) -> Run:
    """How a model is run; DataError where it does not work on a batch."""

    def guard(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        try:
            return run(batch)
        except SparsifyError:
            raise
        except Exception as error:  # of torch and ONNX Runtime, a class of its own for every op
            raise DataError(f"'{folder}' does not run on this batch: {reason_of(error)}") from error

    return guard


def _program(folder: Path, loading: Loading) -> Artifact:
    program = load(folder, verify=loading.verify, trust_remote_code=loading.trust_remote_code)
    return Artifact(
        folder.name,
        "program",
        folder,
        guarded(folder, program.run),
        program.tokenizer,
        admission_of_program(program),
    )


def _onnx(folder: Path, loading: Loading) -> Artifact:
    session = open_session(
        folder / "model.onnx", threads=torch.get_num_threads(), verify=loading.verify
    )

    def run(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        reference = next(iter(batch.values()))
        feeds = {}
        for entry in session.get_inputs():
            value = batch.get(entry.name)
            if value is None and entry.name.startswith("past_key_values."):
                value = torch.zeros(len(reference), entry.shape[1], 0, entry.shape[3])
            value = default_input(entry.name, reference) if value is None else value
            feeds[entry.name] = value.numpy()
        return tuple(torch.from_numpy(array) for array in session.run(None, feeds))

    tokenizer = load_tokenizer(str(folder), trust_remote_code=loading.trust_remote_code)
    return Artifact(
        folder.name, "onnx", folder, guarded(folder, run), tokenizer, admission_in(folder)
    )


def _huggingface(name: str, loading: Loading) -> Artifact:
    model, tokenizer = loaded(name, loading)
    accepted = set(inspect.signature(model.forward).parameters)

    def run(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            result = model(**{k: v for k, v in batch.items() if k in accepted})
        return tuple(value for value in result.to_tuple() if isinstance(value, Tensor))

    return Artifact(
        Path(name).name,
        "gguf" if Path(name).is_file() else "huggingface",
        Path(name),
        guarded(Path(name), run),
        tokenizer,
        admission_of_model(model),
    )
