"""Which tensors a folder of safetensors holds, read without their values."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sparsify.disk.files import read_mapping, reading
from sparsify.errors import DataError

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Header:
    """The file that a tensor lies in, and its shape."""

    file: Path
    shape: tuple[int, ...]


def headers_in(folder: Path) -> dict[str, Header]:
    """Every tensor of a folder by its name there.

    Raises DataError when the folder has no safetensors or one of its files is damaged.
    """
    found = {}
    for file in _files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118  (it is no mapping)
                    found[key] = Header(file, tuple(opened.get_slice(key).get_shape()))
        except (SafetensorError, OSError) as error:
            raise DataError(f"'{file}' is damaged or missing: {error}") from error
    return found


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        with reading(index):
            names = {str(name) for name in read_mapping(index)["weight_map"].values()}
        strange = sorted(name for name in names if Path(name).name != name)
        if strange:
            raise DataError(f"'{index}' names '{strange[0]}', which is no file of its folder")
        return sorted(folder / name for name in names)
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise DataError(f"'{folder}' holds no safetensors; save the model with safetensors first")
    return found
