"""The compiled library beside an exported model, for tools that know nothing of this package.

onnxruntime-genai loads an operator library from the model's own folder and from no other place, by the name
that stands in `genai_config.json`. So the folder can be moved; on another kind of machine the library is put
in anew, or taken out.
"""

import shutil
from pathlib import Path
from typing import Any

from sparsify import native
from sparsify.disk.files import folders, new_file, read_mapping, write_json
from sparsify.disk.locks import locked
from sparsify.errors import DataError
from sparsify.runtime.session import has_packed_weights

_MODEL, _GENAI, _ENTRY = "model.onnx", "genai_config.json", "custom_ops_library"
_STEM = "libsparsify_kernels"


def add_kernels(folder: str | Path) -> list[Path]:
    """Put the library for this machine beside each packed model of a folder and of its format folders.

    Returns where the copies lie: `SessionOptions.register_custom_ops_library` takes such a path, and
    onnxruntime-genai finds it by itself. Raises DataError where no model is packed, KernelError when the
    library is not built.
    """
    places = _packed(Path(folder))
    if not places:
        raise DataError(
            f"'{folder}' holds no packed {_MODEL}; only such a model has a use for kernels"
        )
    library = native.require_library()
    made = []
    with locked(Path(folder)):
        remove_kernels(folder)
        for place in places:
            target = place / f"{_STEM}{library.suffix}"
            with new_file(target) as temporary:
                shutil.copyfile(library, temporary)
            _name(place, target.name)
            made.append(target)
    return made


def remove_kernels(folder: str | Path) -> None:
    """Take the libraries out again: every tool runs the models by the function they carry, right but slow."""
    with locked(Path(folder)):
        for place in _packed(Path(folder)):
            _name(place, None)
            for library in place.glob(f"{_STEM}.*"):
                library.unlink()


def _packed(folder: Path) -> list[Path]:
    """The folders of packed models at a path: itself, and those of formats in it."""
    models = [place / _MODEL for place in (folder, *folders(folder))]
    return [path.parent for path in models if path.is_file() and has_packed_weights(path)]


def _name(place: Path, library: str | None) -> None:
    """Say in `genai_config.json`, where there is one, which library to load."""
    path = place / _GENAI
    if not path.is_file():
        return
    said = read_mapping(path)
    try:
        options: dict[str, Any] = said["model"]["decoder"].setdefault("session_options", {})
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"'{path}' is damaged: it names no decoder") from error
    options.pop(_ENTRY, None)
    if library is not None:
        options[_ENTRY] = library
    write_json(path, said)
