"""Hashes of what is written, checked when it is read: a damaged file is no other model.

They tell damage, not intent: whoever can change a file can change its hash.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sparsify.disk.digests import of_file
from sparsify.disk.files import ABOUT, read_json, write_json
from sparsify.errors import DataError

# The files of an export that hold its weights and its graph. Others may be edited by whoever owns the folder.
_HASHED = ("*.onnx", "*.onnx.data", "*.safetensors")
_KEY = "hashes"
_ADVICE = "copy it anew, or give --no-verify (verify=False) if it was changed on purpose"


def of_tensor(value: Tensor) -> str:
    """SHA-256 of a tensor: its type, its shape, and its bytes in memory order."""
    found = hashlib.sha256(f"{value.dtype} {list(value.shape)} ".encode())
    flat = value.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def write_hashes(folder: Path) -> None:
    """Add the hashes of an export's weights to its `sparsify.json`, where it has one."""
    if (folder / ABOUT).is_file():
        found = {path.name: of_file(path) for path in _weights(folder)}
        write_json(folder / ABOUT, {**read_json(folder / ABOUT), _KEY: found})


def check_hashes(folder: Path) -> None:
    """Refuse an export whose weights are not those that were written; DataError names the file.

    A folder without hashes, ours or not, is taken as it is.
    """
    if not (folder / ABOUT).is_file():
        return
    about = read_json(folder / ABOUT)
    known = about.get(_KEY, {}) if isinstance(about, dict) else None
    if not isinstance(known, dict):
        raise DataError(f"'{folder / ABOUT}' is damaged: its hashes are no mapping")
    for name, wanted in known.items():
        if Path(name).name != name or not (folder / name).is_file():
            raise DataError(f"'{folder}' lacks {name}, which was written with it; {_ADVICE}")
        if of_file(folder / name) != wanted:
            raise DataError(f"'{folder / name}' is damaged: it is not what was written; {_ADVICE}")


def check_equal(found: Iterable[tuple[str, str]], known: Mapping[str, str], where: Path) -> None:
    """Hold hashes by name against those that were stored; DataError names the first that differs."""
    for name, value in found:
        if known.get(name) != value:
            raise DataError(f"'{where}' is damaged: {name} is not what was written; {_ADVICE}")


def _weights(folder: Path) -> list[Path]:
    return sorted(path for kind in _HASHED for path in folder.glob(kind))
