"""Options that verbs of the command line share, each held against what can be meant before anything runs."""

import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsify.commands.config import from_file
from sparsify.errors import DataError, OptionError
from sparsify.measure.suite import Suite
from sparsify.pretrained.loading import STRICT, Loading
from sparsify.version import installed

LONGEST = 1 << 20  # tokens: what a model is traced for


def between(least: float, most: float) -> Callable[[typer.CallbackParam, Any], Any]:
    """A check that a number, when given, is finite and within limits; OptionError."""

    def check(param: typer.CallbackParam, value: Any) -> Any:
        if value is not None and not (math.isfinite(value) and least <= value <= most):
            raise OptionError(f"{_spelt(param)} {value} must be from {least} to {most}")
        return value

    return check


def usable_device(name: str) -> str:
    """A device that this machine has; OptionError."""
    if name != "cpu":  # which is always there, and torch takes seconds to import
        from sparsify.ir.device import device_of

        device_of(name)
    return name


def spread_device(name: str) -> str:
    """A device that this machine has, or `auto`, where layers are spread; OptionError."""
    return name if name == "auto" else usable_device(name)


def writable_file(param: typer.CallbackParam, path: Path | None) -> Path | None:
    """A file that can be written into a folder that is there; DataError."""
    if path is None:
        return None
    if path.is_dir():
        raise DataError(f"{_spelt(param)} '{path}' is a folder; name a file")
    if not path.parent.is_dir():
        raise DataError(
            f"{_spelt(param)} '{path}': there is no folder '{path.parent}'; make it first"
        )
    _require_access(param, path.parent)
    return path


def writable_folder(param: typer.CallbackParam, path: Path | None) -> Path | None:
    """A folder that is there or can be made, and written into; DataError."""
    if path is None:
        return None
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir():
        raise DataError(
            f"{_spelt(param)} '{path}': '{there}' is a file; name a folder to write into"
        )
    _require_access(param, there)
    return path


def _require_access(param: typer.CallbackParam, folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(
            f"{_spelt(param)}: nothing may be written into '{folder}'; choose another folder"
        )


def _spelt(param: typer.CallbackParam) -> str:
    return max(param.opts, key=len)


Model = Annotated[
    str,
    typer.Argument(
        help="A Hugging Face folder, hub id or GGUF file, one of our folders, 'embedded' or 'real'."
    ),
]
Source = Annotated[
    str, typer.Option(help="A folder, hub id or GGUF file, or 'embedded', or 'real'.")
]
Text = Annotated[
    str | None,
    typer.Option(
        help="A text, jsonl, csv or parquet file, a folder, or name[:config][:split]; the column of rows "
        "as rows.csv#body; several with commas; domains as web=a.txt,code=b.txt, with weights as "
        "web=a.txt:0.7."
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="A YAML file of these options; the command line goes over it. Runs write one: run.yaml.",
        callback=from_file,
        is_eager=True,
    ),
]
Overwrite = Annotated[bool, typer.Option(help="Replace what stands in --out.")]
# A file or folder that a verb writes.
Json = Annotated[
    Path | None,
    typer.Option(help="Also write the figures to this file.", callback=writable_file),
]
Out = Annotated[
    Path, typer.Option(help="The folder for everything that comes out.", callback=writable_folder)
]
Dump = Annotated[
    Path | None,
    typer.Option(help="Write the program after every pass here.", callback=writable_folder),
]
Formats = Annotated[
    str,
    typer.Option(help="Formats separated by commas: safetensors, onnx, onnx-decode, huggingface."),
]
Track = Annotated[
    str,
    typer.Option(
        help="Where figures go as they come, separated by commas: jsonl, tensorboard, wandb, mlflow."
    ),
]
# What bounds a number from above is what no machine has.
Length = Annotated[
    int,
    typer.Option(help="Tokens in a sequence: the context length.", callback=between(2, LONGEST)),
]
Limit = Annotated[
    int | None,
    typer.Option(
        help="At most so many sequences, and the first so many items of every task.",
        callback=between(1, 1_000_000_000),
    ),
]
Samples = Annotated[
    int, typer.Option(help="Sequences to calibrate on.", callback=between(1, 10_000_000))
]
Batch = Annotated[int, typer.Option(help="Sequences at a time.", callback=between(1, 1_000_000))]
Tokens = Annotated[int, typer.Option(help="New tokens at most.", callback=between(1, LONGEST))]
Temperature = Annotated[
    float, typer.Option(help="0: always the likeliest token.", callback=between(0, 1000))
]
Threads = Annotated[
    int, typer.Option(help="Threads to compute with; 0 for all.", callback=between(0, 1024))
]
Rounds = Annotated[
    int,
    typer.Option(help="Timed rounds; variants take turns in each.", callback=between(1, 100_000)),
]
Against = Annotated[
    str | None, typer.Option(help="For encoders: compare embeddings with this model's.")
]
Seed = Annotated[int, typer.Option(callback=between(-(2**63), 2**63 - 1))]
Device = Annotated[str, typer.Option(callback=usable_device)]
Spread = Annotated[
    str,
    typer.Option(
        help="As in cuda:0; 'auto' spreads the layers over all GPUs.", callback=spread_device
    ),
]
# What may be loaded: the fields of `Loading`.
Partial = Annotated[
    bool,
    typer.Option(
        "--allow-partial", help="Load although tensors are missing (then random) or too many."
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run the Python code that comes with a model or tokenizer."
    ),
]
Merge = Annotated[
    bool,
    typer.Option(
        "--merge-adapter", help="Add an adapter in the model's folder to the weights (needs peft)."
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify", help="Hold files that we have written against their hashes."
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(help="A folder with an adapter to add to the model's weights (needs peft)."),
]
Revision = Annotated[
    str | None, typer.Option(help="The branch, tag or commit of a model that is a hub id.")
]
_LOADING = {
    "allow_partial": Partial,
    "trust_remote_code": Trust,
    "merge_adapter": Merge,
    "verify": Verify,
    "adapter": Adapter,
    "revision": Revision,
}


# What a model is asked: the fields of `Suite`.
_SUITE = {
    "tasks": (
        Annotated[
            str | None,
            typer.Option(help="Tasks of the EleutherAI harness, separated by commas."),
        ],
        None,
    ),
    "task_path": (
        Annotated[Path | None, typer.Option(help="A folder of task files (YAML) to add.")],
        None,
    ),
    "task_data": (
        Annotated[Path | None, typer.Option(help="The folder that those files read from.")],
        None,
    ),
    "shots": (
        Annotated[
            int | None,
            typer.Option(help="Solved examples before an item.", callback=between(0, 1000)),
        ],
        None,
    ),
}


def loads_models(command: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options on what may be loaded, in place of its one argument `loading`."""
    options = {name: (kind, getattr(STRICT, name)) for name, kind in _LOADING.items()}
    return gathered(command, "loading", options, Loading)


def asks_tasks(command: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options on tasks, in place of its one argument `suite`; None where none is named."""
    return gathered(command, "suite", _SUITE, _suite)


def _suite(
    tasks: str | None, task_path: Path | None, task_data: Path | None, shots: int | None
) -> Suite | None:
    if tasks is not None:
        return Suite(words(tasks), task_path, task_data, shots=shots)
    for name, value in (("path", task_path), ("data", task_data), ("shots", shots)):
        if value is not None:
            option = "--shots" if name == "shots" else f"--task-{name}"
            raise OptionError(f"{option} is for tasks; name some by --tasks")
    return None


def gathered(
    command: Callable[..., None],
    argument: str,
    options: Mapping[str, tuple[Any, Any]],
    make: Callable[..., Any],
) -> Callable[..., None]:
    """A verb with options, each of an annotation and a default, in place of the argument made of them."""

    @functools.wraps(command)
    def verb(**values: Any) -> None:
        made = make(**{name: values.pop(name) for name in options})
        command(**values, **{argument: made})

    signature = inspect.signature(command, eval_str=True)
    kept = [p for p in signature.parameters.values() if p.name != argument]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in options.items()
    ]
    verb.__signature__ = signature.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    verb.__annotations__ = {p.name: p.annotation for p in (*kept, *added)}
    return verb


def say_version(wanted: bool) -> None:
    """Print the version and stop, when it is asked for."""
    if wanted:
        typer.echo(f"sparsify-fx {installed()}")
        raise typer.Exit


def words(text: str) -> tuple[str, ...]:
    """The words of a list separated by commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())
