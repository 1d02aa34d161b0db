"""`sparsify-fx export` and `kernels`: other formats of a program, and the library for packed weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from sparsify.commands.loudness import console
from sparsify.commands.options import (
    Formats,
    Json,
    Model,
    Overwrite,
    loads_models,
    words,
    writable_folder,
)
from sparsify.disk.files import folder_bytes, write_json
from sparsify.pretrained.loading import Loading


@loads_models
def export_model(
    folder: Model,
    to: Formats,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to; beside the program by default.", callback=writable_folder),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = None,
    *,
    loading: Loading,
) -> None:
    """Export a program or model to other formats, each read back and compared."""
    from sparsify.commands.artifacts import open_program
    from sparsify.commands.bar import counted
    from sparsify.commands.run import show_notes
    from sparsify.engine.export import chosen_exporters, export

    chosen_exporters(words(to))
    program = open_program(folder, loading)
    place = out or (Path(folder) if Path(folder).is_dir() else Path(Path(folder).name))
    with counted("exporting") as bar:
        made = export(program, place, words(to), overwrite=overwrite, progress=bar)
    for name, path in made.items():
        console.print(f"{name}: {path}")
        show_notes(path, console)
    if json is not None:
        write_json(json, {"formats": written_formats(made)})


def written_formats(paths: Mapping[str, Path]) -> dict[str, dict[str, object]]:
    """The folder and the bytes of every format that was written, by its name."""
    return {
        name: {"folder": str(path), "bytes": folder_bytes(path)} for name, path in paths.items()
    }


def kernels(
    folder: Annotated[Path, typer.Argument(help="A folder with a packed ONNX model.")],
    remove: Annotated[bool, typer.Option(help="Take the library out again.")] = False,
    json: Json = None,
) -> None:
    """Put the library for packed weights beside a model, for onnxruntime-genai and others."""
    from sparsify.runtime.library_beside import add_kernels, remove_kernels

    placed = []
    if remove:
        remove_kernels(folder)
    else:
        placed = add_kernels(folder)
    for path in placed:
        console.print(str(path), soft_wrap=True)
    if json is not None:
        write_json(json, {"libraries": [str(path) for path in placed]})
